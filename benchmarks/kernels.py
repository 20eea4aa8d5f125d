"""Kernels against the machine: `python -m benchmarks.kernels decode` prints how close to the read bandwidth they come.

Copies of a packed matrix fill a stretch of memory that is larger than the caches (``dram``) or half of the last one
(``l3``). In turns, every copy is multiplied by one token, and the same bytes are only read, cut into the same pieces by
as many threads: so both start as many parallel loops, and both see a busy minute of the machine. Medians of the rounds;
the fraction is that of each round's own two times. A copy starts at a multiple of 64 bytes, the read covers the gaps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bitwright.codegen.isa import Isa, select_isa
from bitwright.codegen.linear import LinearSpec, build_linear, linear_arguments
from bitwright.errors import BitwrightError, UsageError
from bitwright.scheme import LinearScheme
from bitwright.target import Target

MIB = 1 << 20
SHAPES = {"dram": (8192, 8192), "l3": (2048, 2048)}
SCHEMES = "u2g32a8,u3g32a8,u4g32a8,u5g32a8,u6g32a8,u8g32a8"
WEIGHTS = ("codes", "scales", "zeros", "table", "weights")


@dataclass(frozen=True)
class Case:
    """One row of the table: a matrix of (outputs, inputs) weights, where its copies live, and who works on them."""

    level: str
    outputs: int
    inputs: int
    scheme: LinearScheme
    threads: int

    @property
    def spec(self) -> LinearSpec:
        return LinearSpec(self.outputs, self.inputs, self.scheme, rows=1)

    @property
    def function(self) -> str:
        return f"decode_{self.scheme}_{self.outputs}x{self.inputs}_t{self.threads}"


def level_bytes(caches: Mapping[str, int]) -> dict[str, int]:
    """Bytes that the copies of a matrix fill, by where they then live."""
    last = max(caches.values(), default=32 * MIB)
    return {"dram": max(8 * last, 128 * MIB), "l3": last // 2}


def compile_cases(cases: Sequence[Case], isa: Isa, target: Target) -> Any:
    """One module with the function of every case, and ``read``."""
    from bitwright.autotune.bandwidth import build_read_bandwidth
    from bitwright.codegen.builder import build

    functions = {case.function: build_linear(case.spec, isa, case.function, case.threads) for case in cases}
    return build({**functions, "read": build_read_bandwidth(isa, "read")}, target.tvm())


def filled(nbytes: int) -> npt.NDArray[np.uint8]:
    """Memory at a multiple of 64 bytes whose bytes are moderate numbers, as single and as half precision."""
    raw = np.empty(nbytes + 64, np.uint8)
    memory = raw[-raw.ctypes.data % 64 :][:nbytes]
    pattern = np.random.default_rng(0).integers(0x20, 0x3C, MIB, np.uint8)
    for first in range(0, nbytes, MIB):
        memory[first : first + MIB] = pattern[: nbytes - first]
    return memory


def _aligned(nbytes: int) -> int:
    return -(-nbytes // 64) * 64


class Copies:
    """Copies of a matrix in memory, and the calls that pass over all of them.

    Raises:
        UsageError: not even one fits.
    """

    def __init__(self, case: Case, isa: Isa, module: Any, memory: npt.NDArray[np.uint8]) -> None:
        tensors = linear_arguments(case.spec, isa)
        weights = [tensor for tensor in tensors if tensor.name in WEIGHTS]
        self.case = case
        self.nbytes = sum(tensor.nbytes for tensor in weights)
        stride = sum(_aligned(tensor.nbytes) for tensor in weights)
        self.count = memory.size // stride
        if not self.count:
            raise UsageError(
                f"a matrix of {case.outputs} x {case.inputs} at {case.scheme} has {self.nbytes} bytes",
                limit=f"{memory.size} bytes for all copies at level {case.level}",
                remedy="use a smaller --shape or another --level",
            )
        self._function, self._read = module[case.function], module["read"]
        others = {
            t.name: _tensor(filled(_aligned(t.nbytes)), 0, t.dtype, t.shape) for t in tensors if t.name not in WEIGHTS
        }
        self._calls, self._pieces = [], []
        for first in range(0, self.count * stride, stride):
            arguments, at = dict(others), first
            for tensor in weights:
                arguments[tensor.name] = _tensor(memory, at, tensor.dtype, tensor.shape)
                at += _aligned(tensor.nbytes)
            self._calls.append(tuple(arguments[tensor.name] for tensor in tensors))
            self._pieces.append(_tensor(memory, first, "uint8", (stride,)))
        self._sums = _tensor(filled(64 * case.threads), 0, "uint64", (8 * case.threads,))

    def multiply(self) -> None:
        for arguments in self._calls:
            self._function(*arguments)

    def read(self) -> None:
        for piece in self._pieces:
            self._read(piece, self._sums)


def _tensor(memory: npt.NDArray[np.uint8], first: int, dtype: str, shape: tuple[int, ...]) -> Any:
    import tvm_ffi

    nbytes = prod(shape) * np.dtype(dtype).itemsize
    return tvm_ffi.from_dlpack(memory[first : first + nbytes].view(dtype).reshape(shape))


def seconds(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(copies: Copies, rounds: int) -> dict[str, Any]:
    """One row: medians over rounds of one pass of each kind, after an unrecorded one."""
    actions = (copies.multiply, copies.read)
    pairs = []
    for turn in range(rounds + 1):
        ordered = actions if turn % 2 else actions[::-1]
        taken = {action: seconds(action) for action in ordered}
        pairs.append(tuple(taken[action] for action in actions))
    pairs = pairs[1:]
    kernel, read = (statistics.median(times) for times in zip(*pairs, strict=True))
    case, total = copies.case, copies.nbytes * copies.count
    return {
        "level": case.level,
        "outputs": case.outputs,
        "inputs": case.inputs,
        "scheme": str(case.scheme),
        "threads": case.threads,
        "bytes": copies.nbytes,
        "copies": copies.count,
        "microseconds": kernel / copies.count * 1e6,
        "gb_per_second": total / kernel / 1e9,
        "read_gb_per_second": total / read / 1e9,
        "read_fraction": statistics.median(reading / multiplying for multiplying, reading in pairs),
    }


def run_decode(
    cases: Sequence[Case], target: Target, sizes: Mapping[str, int], rounds: int
) -> Iterator[dict[str, Any]]:
    isa = select_isa(target.features, target.tune)
    module = compile_cases(cases, isa, target)
    memory = filled(max(sizes[case.level] for case in cases))
    for case in cases:
        yield measure(Copies(case, isa, module, memory[: sizes[case.level]]), rounds)


def print_table(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD)
    for heading in ("level", "matrix", "scheme", "threads", "MB", "µs", "GB/s", "read GB/s", "of read"):
        justify: Literal["left", "right"] = "left" if heading in ("level", "matrix", "scheme") else "right"
        table.add_column(heading, justify=justify, no_wrap=True)
    for row in rows:
        table.add_row(
            row["level"],
            f"{row['outputs']}x{row['inputs']}",
            row["scheme"],
            str(row["threads"]),
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['microseconds']:.1f}",
            f"{row['gb_per_second']:.1f}",
            f"{row['read_gb_per_second']:.1f}",
            f"{row['read_fraction']:.0%}",
        )
    Console().print(table)


def _shape(text: str) -> tuple[int, int]:
    outputs, inputs = (int(extent) for extent in text.split("x"))
    if outputs < 1 or inputs < 1:
        raise ValueError(text)
    return outputs, inputs


def _list_of(parse: Callable[[str], Any], text: str) -> list[Any]:
    return [parse(item) for item in text.split(",")]


def _level(text: str) -> str:
    if text not in SHAPES:
        raise ValueError(text)
    return text


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="benchmarks.kernels", description=__doc__.splitlines()[0])
    verbs = top.add_subparsers(dest="verb", required=True)
    decode = verbs.add_parser("decode", help="one token times packed matrices")
    decode.add_argument("--schemes", default=SCHEMES, help=f"linear schemes (default: {SCHEMES})")
    shapes = partial(_list_of, _shape)
    decode.add_argument(
        "--shapes", type=shapes, metavar="OUTPUTSxINPUTS,...", help=f"for every level (default: {SHAPES})"
    )
    decode.add_argument("--levels", type=partial(_list_of, _level), default=["dram", "l3"], metavar="dram,l3")
    decode.add_argument("--threads", type=partial(_list_of, _positive), default=[1, 2], metavar="N,...")
    decode.add_argument("--target", default="native", help="as for `bitwright compile`")
    decode.add_argument("--rounds", type=_positive, default=9)
    decode.add_argument("--mib", type=_positive, help="bytes that the copies of a matrix fill, in MiB, at every level")
    decode.add_argument("--json", action="store_true", help="rows as one JSON document instead of a table")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        target = Target.parse(options.target)
        sizes = level_bytes(target.caches)
        if options.mib:
            sizes = dict.fromkeys(sizes, options.mib * MIB)
        schemes = _list_of(LinearScheme.parse, options.schemes)
        cases = [
            Case(level, outputs, inputs, scheme, threads)
            for level in options.levels
            for outputs, inputs in options.shapes or [SHAPES[level]]
            for scheme in schemes
            for threads in options.threads
        ]
        rows = list(run_decode(cases, target, sizes, options.rounds))
    except BitwrightError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    isa = select_isa(target.features).name
    if options.json:
        print(json.dumps({"target": target.name, "isa": isa, "rounds": options.rounds, "rows": rows}))
    else:
        print_table(rows, f"decode on {target.name} ({isa}), medians of {options.rounds} rounds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
