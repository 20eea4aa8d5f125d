"""Compile a kernel for this machine and call it with NumPy arrays."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .tolerances import Tolerance

THREADS = 2


@cache
def compiled(build: Any, spec: Any) -> Any:
    """The callable of ``build(spec)``, compiled once per test session."""
    from bitwright.codegen.builder import build as build_library
    from bitwright.codegen.builder import read_host_target

    func = build(spec)
    return build_library(func, read_host_target(THREADS))[spec.name]


def call(build: Any, spec: Any, *arguments: Any, outputs: tuple[int, ...] = ()) -> list[NDArray[Any]]:
    """Call the kernel; arrays become tensors, integers stay scalars; returns the arguments at ``outputs``."""
    import tvm

    passed = [tvm.runtime.tensor(np.ascontiguousarray(a)) if isinstance(a, np.ndarray) else a for a in arguments]
    compiled(build, spec)(*passed)
    return [passed[index].numpy() for index in outputs]


def empty(*shape: int, dtype: str = "float32") -> NDArray[Any]:
    """An output array full of NaN, so that an element that is never written shows."""
    return np.full(shape, np.nan, dtype)


def assert_close(actual: NDArray[Any], expected: NDArray[Any], tolerance: Tolerance) -> None:
    np.testing.assert_allclose(
        actual.astype(np.float64), expected.astype(np.float64), rtol=tolerance.relative, atol=tolerance.absolute
    )
