"""OpenVINO's CPU plugin on a stateful decoder, as its own pipelines set it up: latency hint, its default cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class OpenVinoEngine:
    """One OpenVINO model that keeps its cache as state and computes the logits of the last token alone.

    Args:
        model: ``.xml`` file, its weights beside it.
        threads: of the inference.
        context: unused, the cache grows by itself.
        exact: compute in float32, for comparing logits. Otherwise what OpenVINO chooses for this CPU (bfloat16 and an
            8-bit cache where it has instructions for them).
    """

    def __init__(self, model: Path, threads: int, context: int, exact: bool = False) -> None:
        import openvino

        core = openvino.Core()
        config: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        if exact:
            config |= {
                "INFERENCE_PRECISION_HINT": "f32",
                "KV_CACHE_PRECISION": "f32",
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
            }
        compiled = core.compile_model(str(model), "CPU", config)
        self._request = compiled.create_infer_request()
        self.vocab = int(compiled.outputs[0].partial_shape[-1].get_length())
        self.weight_bytes = model.with_suffix(".bin").stat().st_size
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        self._version = openvino.__version__.split("-")[0]
        self._features = f"{precision}, cache {compiled.get_property('KV_CACHE_PRECISION').to_string()}"
        self._position = 0

    def prefill(self, ids: Sequence[int]) -> None:
        end = self._position + len(ids)
        feeds = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(self._position, end, dtype=np.int64)[None],
        }
        self._request.infer(feeds, share_inputs=True, share_outputs=True)
        self._position = end

    def decode(self, token: int) -> None:
        self.prefill((token,))

    def reset(self) -> None:
        self._request.reset_state()
        self._position = 0

    def last_logits(self) -> NDArray[np.float32]:
        """Logits after the last token, float32 (vocab,)."""
        return np.array(self._request.get_output_tensor(0).data[0, -1], dtype=np.float32)

    @property
    def description(self) -> dict[str, str]:
        return {"name": "openvino", "package": f"openvino {self._version}", "features": self._features}
