"""One contestant in a process of its own: `python -m benchmarks.worker ENGINE PATH THREADS CONTEXT [CACHE]`.

Engines with different thread pools in one process disturb each other. A worker loads its model once, then answers one
JSON request a line: ``{"test": "pp512", "depth": 0}`` with ``{"seconds": x, "tokens": n}``, ``{"logits": [ids]}`` with
the logits behind the last of the ids, ``{"sweep": [depths], "tokens": n}`` with ``{"seconds": [x, ...]}``, of n tokens
at each depth; the first line it writes describes it.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TextIO

import numpy as np
from numpy.typing import NDArray

ENGINES = {
    "bitwright": "benchmarks.bitwright_engine:BitwrightEngine",
    "llama.cpp": "benchmarks.llama_engine:LlamaEngine",
    "onnxruntime": "benchmarks.onnx_engine:OnnxEngine",
    "openvino": "benchmarks.openvino_engine:OpenVinoEngine",
}
"""Where each engine's class is; made from (path, threads, context), and a cache format where one is given."""

SETTLE_SECONDS = 0.1
"""After this the threads of the contestant before have stopped to wait for work in a loop."""

WARM_TOKENS = 8


class Engine(Protocol):
    vocab: int
    weight_bytes: int

    def prefill(self, ids: list[int]) -> None: ...
    def decode(self, token: int) -> None: ...
    def reset(self) -> None: ...
    def last_logits(self) -> NDArray[np.float32]: ...
    @property
    def description(self) -> dict[str, str]: ...


@dataclass(frozen=True)
class Row:
    """``pp512``: a prompt of 512 tokens; ``tg64``: 64 tokens decoded one by one; after ``depth`` tokens of context."""

    kind: str
    tokens: int
    depth: int = 0

    @classmethod
    def parse(cls, name: str, depth: int = 0) -> Row:
        match = re.fullmatch(r"(pp|tg)([1-9]\d*)", name)
        if not match:
            raise SystemExit(f"'{name}' is no test: use pp<tokens> or tg<tokens>, such as pp512 or tg64")
        return cls(match[1], int(match[2]), depth)

    @property
    def name(self) -> str:
        return f"{self.kind}{self.tokens}"

    @property
    def positions(self) -> int:
        return self.depth + self.tokens


def warm_up(engine: Engine) -> None:
    """Wake threads and clocks, and bring memory back that the contestants before have displaced."""
    time.sleep(SETTLE_SECONDS)
    engine.reset()
    engine.prefill([1] * WARM_TOKENS)
    for _ in range(WARM_TOKENS):
        engine.decode(1)


def run_test(engine: Engine, test: Row, random: np.random.Generator) -> float:
    """Seconds of one repetition on random tokens; the context of ``depth`` tokens is filled before the clock starts."""
    ids: list[int] = random.integers(0, engine.vocab, test.positions).tolist()
    warm_up(engine)
    engine.reset()
    if test.depth:
        engine.prefill(ids[: test.depth])
    timed = ids[test.depth :]
    start = time.perf_counter()
    if test.kind == "pp":
        engine.prefill(timed)
    else:
        for token in timed:
            engine.decode(token)
    return time.perf_counter() - start


def run_sweep(engine: Engine, depths: list[int], tokens: int, random: np.random.Generator) -> list[float]:
    """Seconds of ``tokens`` decoded tokens at each of ascending depths, in one context that prompts fill in between."""
    ids: list[int] = random.integers(0, engine.vocab, depths[-1] + tokens).tolist()
    warm_up(engine)
    engine.reset()
    seconds, filled = [], 0
    for depth in depths:
        if depth > filled:
            engine.prefill(ids[filled:depth])
        filled = depth + tokens
        start = time.perf_counter()
        for token in ids[depth:filled]:
            engine.decode(token)
        seconds.append(time.perf_counter() - start)
    return seconds


def last_logits(engine: Engine, ids: list[int]) -> list[float]:
    """Logits behind the last of ``ids``, which is decoded alone, so that both paths of the engine take part."""
    engine.reset()
    engine.prefill(ids[:-1])
    engine.decode(ids[-1])
    logits: list[float] = engine.last_logits().astype(float).tolist()
    return logits


def serve(engine: Engine, requests: TextIO, answer: Callable[[dict[str, object]], None]) -> None:
    random = np.random.default_rng(0)
    answer({**engine.description, "weight_bytes": engine.weight_bytes})
    for line in requests:
        request = json.loads(line)
        if "logits" in request:
            answer({"logits": last_logits(engine, request["logits"])})
            continue
        if "sweep" in request:
            answer({"seconds": run_sweep(engine, request["sweep"], request["tokens"], random)})
            continue
        test = Row.parse(request["test"], request["depth"])
        answer({"seconds": run_test(engine, test, random), "tokens": test.tokens})


def main() -> None:
    kind, path, threads, context, *cache = sys.argv[1:]
    # Native libraries print on stdout too; the protocol gets a descriptor of its own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    module, name = ENGINES[kind].split(":")
    engine: Engine = getattr(importlib.import_module(module), name)(Path(path), int(threads), int(context), *cache)
    serve(engine, sys.stdin, lambda answer: print(json.dumps(answer), file=answers))


if __name__ == "__main__":
    main()
