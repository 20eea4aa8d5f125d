"""Prefill kernels against the machine: `python -m benchmarks.prefill_kernels` prints how close to the peak they come.

The peak of byte dot products is measured in the same run, before and after the kernels of each number of threads. A
multiply-add of a16 takes two of them, so its fraction cannot exceed one half.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from bitwright.autotune.dot_peak import build_dot_peak, measure_dot_peak
from bitwright.autotune.timing import aligned, median_seconds
from bitwright.codegen.isa import select_isa
from bitwright.codegen.linear import LinearSpec, build_linear, linear_arguments
from bitwright.codegen.linear.spec import TOKENS
from bitwright.codegen.quantized_rows import LEVELS
from bitwright.errors import BitwrightError, UsageError
from bitwright.scheme import LinearScheme
from bitwright.target import Target
from bitwright.tvm_runtime import use_threads

SCHEMES = "u2g64a8,u3g64a8,u4g32a8,u4g64a8,u5g64a8,u6g64a8,u8g64a8,u4g32a16"


@dataclass(frozen=True)
class Row:
    """One measurement, in multiply-adds of weights and activations per second."""

    outputs: int
    inputs: int
    scheme: str
    tokens: int
    threads: int
    macs_per_second: float
    peak_macs_per_second: float

    @property
    def fraction(self) -> float:
        return self.macs_per_second / self.peak_macs_per_second


def run_prefill(
    shapes: Sequence[tuple[int, int]],
    schemes: Sequence[LinearScheme],
    tokens: Sequence[int],
    threads: int,
    target: Target,
    seconds: float,
) -> Iterator[Row]:
    """The rows of one number of threads, as many as the thread pool has."""
    from bitwright.codegen.builder import build

    isa, machine = select_isa(target.features, target.tune), target.tvm()
    specs = [LinearSpec(outputs, inputs, scheme) for outputs, inputs in shapes for scheme in schemes]
    functions = {spec.name: build_linear(spec, isa, spec.name, threads) for spec in specs}
    peaks = {
        bits: build_dot_peak(isa, bits, f"peak_{bits}") for bits in {spec.scheme.weight.operand_bits for spec in specs}
    }
    module = build({**functions, **{f"peak_{bits}": peak for bits, peak in peaks.items()}}, machine)
    for spec in specs:
        peak = measure_dot_peak(module[f"peak_{spec.scheme.weight.operand_bits}"], isa, threads, seconds=seconds)
        for count in tokens:
            taken = median_seconds(module[spec.name], _arguments(spec, isa, count), seconds)
            macs = count * spec.outputs * spec.inputs / taken
            yield Row(spec.outputs, spec.inputs, str(spec.scheme), count, threads, macs, peak.macs_per_second)


def _arguments(spec: LinearSpec, isa: Any, tokens: int) -> tuple[Any, ...]:
    """Moderate numbers in every tensor, and scales of activations with every mantissa that such scales have: kernels
    look products up by them. Speed depends on no other number."""
    import tvm_ffi

    made = []
    for tensor in linear_arguments(spec, isa):
        shape = [tokens if extent == TOKENS else extent for extent in tensor.shape]
        dtype = np.dtype(tensor.dtype)
        array = aligned(prod(shape) * dtype.itemsize).view(dtype).reshape(shape)
        array[...] = 1
        if tensor.name.startswith("scale") and tensor.dtype == "float32":
            array += np.arange(array.size, dtype=np.float32).reshape(shape) % LEVELS / LEVELS
        made.append(tvm_ffi.from_dlpack(array))
    return tuple(made)


def print_table(rows: Sequence[Row], title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    counts = sorted({row.tokens for row in rows})
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for heading in ("matrix", "scheme", "threads", "peak", *(f"M={count}" for count in counts)):
        table.add_column(heading, justify="left" if heading in ("matrix", "scheme") else "right", no_wrap=True)
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((f"{row.outputs}x{row.inputs}", row.scheme, row.threads), []).append(row)
    for key, group in groups.items():
        cells = [f"{row.macs_per_second / 1e9:.0f} ({row.fraction:.0%})" for row in group]
        table.add_row(*map(str, key), f"{group[0].peak_macs_per_second / 1e9:.0f}", *cells)
    Console(width=160).print(table)


def _shapes(text: str) -> list[tuple[int, int]]:
    pairs = (item.split("x") for item in text.split(","))
    return [(int(outputs), int(inputs)) for outputs, inputs in pairs]


def _counts(text: str) -> list[int]:
    return [int(item) for item in text.split(",")]


def _schemes(text: str) -> list[LinearScheme]:
    schemes = [LinearScheme.parse(name) for name in text.split(",")]
    if floats := [str(scheme) for scheme in schemes if not scheme.terms]:
        raise UsageError(
            f"{floats[0]} makes no byte dot products", limit="schemes of packed weights", remedy="use u8g32a8"
        )
    return schemes


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="benchmarks.prefill_kernels", description=__doc__.splitlines()[0])
    top.add_argument("--schemes", default=SCHEMES, help=f"linear schemes of packed weights (default: {SCHEMES})")
    top.add_argument("--shapes", type=_shapes, default="1536x576,576x1536", metavar="OUTPUTSxINPUTS,...")
    top.add_argument("--tokens", type=_counts, default="2,8,16,64,512", metavar="M,...")
    top.add_argument("--threads", type=int, default=1, help="of the kernels and of the peak")
    top.add_argument("--target", default="native", help="as for `bitwright compile`")
    top.add_argument("--seconds", type=float, default=0.1, help="spent on each figure")
    top.add_argument("--json", action="store_true", help="rows as one JSON document instead of a table")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        use_threads(options.threads)
        target = Target.parse(options.target)
        schemes = _schemes(options.schemes)
        work = (options.shapes, schemes, options.tokens, options.threads, target, options.seconds)
        rows = list(run_prefill(*work))
    except BitwrightError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if options.json:
        print(json.dumps({"target": target.name, "rows": [vars(row) | {"fraction": row.fraction} for row in rows]}))
    else:
        print_table(rows, f"prefill on {target.name} ({select_isa(target.features).name}), GMAC/s (of the peak)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
