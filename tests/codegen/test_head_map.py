"""The head map against its oracle."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bitwright.codegen.head_map import HeadMapSpec, build_head_map
from bitwright.codegen.isa import AVX2, AVX512VNNI, GENERIC, Isa
from bitwright.codegen.reference.head_map import head_map
from bitwright.errors import UnsupportedError
from bitwright.target import Target

from .harness import assert_close, call, empty
from .linear_case import GENERIC_WIDE, tensor
from .tolerances import ATTENTION

RNG = np.random.default_rng(8)

ISAS = (AVX2, AVX512VNNI, GENERIC)
SHAPES = [(9, 3, 64), (3, 3, 64), (4, 2, 80), (6, 2, 96), (2, 2, 128)]
CASES = [(*shape, isa) for shape in SHAPES for isa in ISAS]
CASES += [(14, 2, 64, AVX2), (2, 1, 256, AVX512VNNI), (6, 2, 16, GENERIC_WIDE), (3, 3, 20, AVX512VNNI)]


def halves(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) * shape[-1] ** -0.5).astype("float16")


def arguments(spec: HeadMapSpec, n: int) -> list[np.ndarray]:
    """x and the matrices, and the shift if there is one."""
    shift = [RNG.standard_normal((spec.groups, spec.head_dim)).astype("float32")] if spec.shift else []
    x = RNG.standard_normal((n, spec.heads * spec.head_dim)).astype("float32")
    return [x, halves(spec.groups, spec.head_dim, spec.head_dim), *shift]


@pytest.mark.parametrize("rows", [1, None])
@pytest.mark.parametrize(("heads", "groups", "size", "isa"), CASES)
def test_matches_oracle(heads: int, groups: int, size: int, isa: Isa, rows: int | None) -> None:
    """Whatever this machine is: the kernel asks for no instruction by name."""
    spec = HeadMapSpec(heads, groups, size, heads == groups, rows=1 if rows else None, isa=isa)
    for n in (1,) if rows else (1, 5, 40):
        inputs = arguments(spec, n)
        (y,) = call(build_head_map, spec, *inputs, empty(*inputs[0].shape), outputs=(len(inputs),))
        assert_close(y, head_map(*inputs), ATTENTION)


@pytest.mark.parametrize("rows", [1, None])
def test_generic_kernels_widen_every_half_exactly_and_call_nothing(rows: int | None) -> None:
    from bitwright.codegen.builder import build

    def compiled(isa: Isa) -> tuple[Any, int]:
        """The kernel for the portable target, and how often it calls a function that widens one number."""
        spec = HeadMapSpec(1, 1, 256, False, rows=1 if rows else None, isa=isa)
        library = build(build_head_map(spec), Target.parse("generic").tvm())
        return library[spec.name], len(
            re.findall(r"(?:call|bl|jmp)\w*\s+__extendhfsf2", library.mod.inspect_source("asm"))
        )

    assert compiled(replace(GENERIC, half=True))[1] > 0
    kernel, calls = compiled(GENERIC)
    assert calls == 0
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    x = np.eye(256, dtype=np.float32)
    step = 1 if rows else 256
    for matrix in np.where(np.isfinite(every), every, 0).reshape(-1, 256, 256):
        for first in range(0, 256, step):
            y = tensor(empty(step, 256))
            kernel(tensor(x[first : first + step]), tensor(matrix[None]), y)
            np.testing.assert_array_equal(y.numpy(), matrix[first : first + step].astype(np.float32))


def test_many_tokens_are_shared_by_threads() -> None:
    spec = HeadMapSpec(9, 3, 64, True, isa=AVX2)
    inputs = arguments(spec, 101)  # above the limit for parallel loops, and no multiple of a tile
    (y,) = call(build_head_map, spec, *inputs, empty(*inputs[0].shape), outputs=(len(inputs),))
    assert_close(y, head_map(*inputs), ATTENTION)


def test_groups_that_do_not_divide_the_heads_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="9 heads in 2 groups"):
        HeadMapSpec(9, 2, 64, False)
