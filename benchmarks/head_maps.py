"""Maps of caches: `python -m benchmarks.head_maps` times the four kernels of a layer, for one token and for a prompt.

Those of values and results are needed only where weights cannot map values (docs/decisions.md, 50).

Median processor time of one thread, which other programs disturb less than the clock. For one token also with maps that
come from memory, as they do in a step: a ring of them, larger than the caches, is read in turn.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.arguments import integers
from bitwright.codegen.head_map import HeadMapSpec, build_head_map
from bitwright.codegen.isa import select_isa
from bitwright.errors import BitwrightError
from bitwright.target import Target
from bitwright.tvm_runtime import use_threads

RING_BYTES = 96 * 2**20


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        maps: whose heads are multiplied: queries (which outputs equal), keys or values.
        bytes: of the maps, shift included, read once per call.
        seconds: of a call whose maps are in a cache.
        cold_seconds: of one whose maps are not; None for prompts.
    """

    maps: str
    tokens: int
    bytes: int
    seconds: float
    cold_seconds: float | None


def run_head_maps(
    heads: int, kv_heads: int, head_dim: int, tokens: Sequence[int], target: Target, seconds: float
) -> Iterator[Row]:
    """Queries' and values' maps have no shift, keys' have one."""
    import tvm

    from bitwright.codegen.builder import build

    use_threads(1)
    rng, isa = np.random.default_rng(0), select_isa(target.features, target.tune)
    for (maps, count, shift), n in itertools.product(
        (("queries", heads, False), ("keys", kv_heads, True), ("values", kv_heads, False)), tokens
    ):
        spec = HeadMapSpec(count, kv_heads, head_dim, shift, 1 if n == 1 else None, isa)
        function = build(build_head_map(spec), target.tvm())[spec.name]
        x = tvm.runtime.tensor(rng.standard_normal((n, count * head_dim), dtype=np.float32))
        y = tvm.runtime.tensor(np.zeros((n, count * head_dim), np.float32))
        rest = [tvm.runtime.tensor(np.zeros((kv_heads, head_dim), np.float32))] if shift else []
        matrices = rng.standard_normal((kv_heads, head_dim, head_dim)).astype(np.float16)
        ring = [tvm.runtime.tensor(matrices) for _ in range(RING_BYTES // matrices.nbytes if n == 1 else 1)]
        calls = [(x, matrix, *rest, y) for matrix in ring]
        hot = _median_seconds(function, calls[:1], seconds)
        cold = _median_seconds(function, calls, seconds) if n == 1 else None
        yield Row(maps, n, matrices.nbytes + (4 * kv_heads * head_dim if shift else 0), hot, cold)


def _median_seconds(function: Any, calls: Sequence[tuple[Any, ...]], seconds: float) -> float:
    """Median of batches that together take ``seconds``, the first of them not counted."""
    turn = itertools.cycle(calls)
    batch = 200 if calls[0][0].shape[0] == 1 else 1
    found: list[float] = []
    while len(found) < 4 or sum(found) * batch < seconds:
        chosen = [next(turn) for _ in range(batch)]
        start = time.thread_time_ns()
        for arguments in chosen:
            function(*arguments)
        found.append((time.thread_time_ns() - start) * 1e-9 / batch)
    return float(np.median(found[1:]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.head_maps", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--heads", type=int, default=9, help="query heads (9)")
    parser.add_argument("--kv-heads", type=int, default=3, help="key/value heads (3)")
    parser.add_argument("--head-dim", type=int, default=64, help="elements of a head (64)")
    parser.add_argument("--tokens", type=integers, default=[1, 512], help="tokens at a time (1,512)")
    parser.add_argument("--target", default="native", help="feature level to compile for (native)")
    parser.add_argument("--seconds", type=float, default=1.0, help="per median (1)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        target = Target.parse(options.target)
        rows = run_head_maps(options.heads, options.kv_heads, options.head_dim, options.tokens, target, options.seconds)
        if options.json:
            print(json.dumps({"rows": [asdict(row) for row in rows]}, indent=1))
            return 0
        print(f"{'maps of':10}{'tokens':>7}{'bytes':>8}{'us':>10}{'us from memory':>16}")
        for row in rows:
            cold = "" if row.cold_seconds is None else f"{row.cold_seconds * 1e6:.2f}"
            print(f"{row.maps:10}{row.tokens:7}{row.bytes:8}{row.seconds * 1e6:10.2f}{cold:>16}", flush=True)
    except BitwrightError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
