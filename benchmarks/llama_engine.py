"""llama.cpp behind the few calls that a timing needs, through its C interface: nothing of Python between two tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.llama_library import llama_library

BATCH = 512
"""Tokens per llama_decode call in a prompt; llama-bench's default micro-batch."""


CACHE_TYPES = {"f16": ("GGML_TYPE_F16", 2.0), "q8_0": ("GGML_TYPE_Q8_0", 34 / 32), "q4_0": ("GGML_TYPE_Q4_0", 18 / 32)}
"""Cache formats: the constant, and bytes per element."""


class LlamaEngine:
    """One model in one context, as llama-bench sets it up: no GPU, automatic flash attention.

    Args:
        model: GGUF file.
        threads: for prompts and for decoding.
        context: positions the cache is allocated for.
        cache: one of ``CACHE_TYPES``; with quantized ones flash attention is on, which they need.
        exact: keep the cache in f32 and attention unfused, for comparing logits.
    """

    def __init__(self, model: Path, threads: int, context: int, cache: str = "f16", exact: bool = False) -> None:
        llama_cpp: Any = llama_library()
        self._lib = llama_cpp
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(bytes(model), model_params)
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {model}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, BATCH, BATCH
        params.n_threads = params.n_threads_batch = threads
        kind, element_bytes = CACHE_TYPES[cache]
        params.type_k = params.type_v = getattr(llama_cpp, kind)
        if cache != "f16":
            params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        if exact:
            params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
            params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise SystemExit(f"llama.cpp cannot create a context of {context} positions for {model}")
        self.vocab = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model)))
        width = llama_cpp.llama_model_n_embd(self._model) // llama_cpp.llama_model_n_head(self._model)
        elements = 2 * width * llama_cpp.llama_model_n_head_kv(self._model) * llama_cpp.llama_model_n_layer(self._model)
        self.cache_bytes_per_token = int(elements * element_bytes)
        self.weight_bytes = int(llama_cpp.llama_model_size(self._model))

    def __enter__(self) -> LlamaEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)

    def _decode(self, ids: Sequence[int]) -> None:
        tokens = (self._lib.llama_token * len(ids))(*ids)
        status = self._lib.llama_decode(self._context, self._lib.llama_batch_get_one(tokens, len(ids)))
        if status:
            raise SystemExit(f"llama_decode failed with status {status}")

    def prefill(self, ids: Sequence[int]) -> None:
        """Append a prompt; logits are computed for its last token (of each batch) alone."""
        for start in range(0, len(ids), BATCH):
            self._decode(ids[start : start + BATCH])
        self._lib.llama_synchronize(self._context)

    def rows(self, ids: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
        """Logits behind every token of a sequence that an empty context begins with, in pieces [tokens, vocab]."""
        self.reset()
        batch = self._lib.llama_batch_init(BATCH, 0, 1)
        try:
            for start in range(0, len(ids), BATCH):
                part = ids[start : start + BATCH]
                batch.n_tokens = len(part)
                for at, token in enumerate(part):
                    batch.token[at], batch.pos[at], batch.n_seq_id[at] = int(token), start + at, 1
                    batch.seq_id[at][0], batch.logits[at] = 0, 1
                status = self._lib.llama_decode(self._context, batch)
                if status:
                    raise SystemExit(f"llama_decode failed with status {status}")
                pointer = self._lib.llama_get_logits(self._context)
                yield np.ctypeslib.as_array(pointer, shape=(len(part), self.vocab)).copy()
        finally:
            self._lib.llama_batch_free(batch)

    def decode(self, token: int) -> None:
        self._decode((token,))
        self._lib.llama_synchronize(self._context)

    def reset(self) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), False)

    def last_logits(self) -> NDArray[np.float32]:
        """Logits after the last token, float32 (vocab,)."""
        pointer = self._lib.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(pointer, shape=(self.vocab,)).copy()

    @property
    def description(self) -> dict[str, str]:
        return {
            "name": "llama.cpp",
            "package": f"llama-cpp-python {self._lib.__version__}",
            "features": self._lib.llama_print_system_info().decode().strip(" |"),
            "cache_bytes_per_token": str(self.cache_bytes_per_token),
        }
