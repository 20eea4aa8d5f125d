"""onnxruntime on an exported decoder, its cache handed from step to step without leaving the library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class OnnxEngine:
    """One ONNX model with ``past_key_values.*`` inputs and ``present.*`` outputs, logits of the last token alone.

    Args:
        model: ONNX file.
        threads: within operators; operators run one after another.
        context: unused, the cache grows by itself.
    """

    def __init__(self, model: Path, threads: int, context: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        self._runtime = onnxruntime
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        inputs = self._session.get_inputs()
        self._past_names = [entry.name for entry in inputs if entry.name.startswith("past_key_values.")]
        self._output_names = [entry.name for entry in self._session.get_outputs()]
        empty = {
            entry.name: [1, entry.shape[1], 0, entry.shape[3]] for entry in inputs if entry.name in self._past_names
        }
        self._empty = {name: self._value(np.zeros(shape, np.float32)) for name, shape in empty.items()}
        self.vocab = int(self._session.get_outputs()[0].shape[-1])
        self.weight_bytes = sum(file.stat().st_size for file in model.parent.glob(f"{model.stem}.*"))
        self.reset()

    def _value(self, array: NDArray[Any]) -> Any:
        return self._runtime.OrtValue.ortvalue_from_numpy(array)

    def reset(self) -> None:
        self._past: dict[str, Any] = dict(self._empty)
        self._position = 0
        self._logits: Any = None

    def prefill(self, ids: Sequence[int]) -> None:
        end = self._position + len(ids)
        feeds = {
            "input_ids": self._value(np.array([ids], np.int64)),
            "attention_mask": self._value(np.ones((1, end), np.int64)),
            "position_ids": self._value(np.arange(self._position, end, dtype=np.int64)[None]),
            **self._past,
        }
        self._logits, *present = self._session.run_with_ort_values(self._output_names, feeds)
        self._past = dict(zip(self._past_names, present, strict=True))
        self._position = end

    def decode(self, token: int) -> None:
        self.prefill((token,))

    def last_logits(self) -> NDArray[np.float32]:
        """Logits after the last token, float32 (vocab,)."""
        logits: NDArray[np.float32] = self._logits.numpy()[0, -1]
        return logits

    @property
    def description(self) -> dict[str, str]:
        return {"name": "onnxruntime", "package": f"onnxruntime {self._runtime.__version__}", "features": ""}
