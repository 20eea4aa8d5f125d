"""The peak of byte dot products is measured by a loop that really multiplies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bitwright.autotune.dot_peak import STEPS, build_dot_peak, measure_dot_peak, products_per_step
from bitwright.autotune.timing import aligned
from bitwright.codegen.isa import ISAS, Isa

from ..codegen.linear_case import missing


def compiled(isa: Isa) -> Any:
    from bitwright.codegen.builder import build, read_host_target

    return build(build_dot_peak(isa), read_host_target())["dot_peak"]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa.dot == "vnni"], ids=lambda isa: isa.name)
def test_every_product_is_computed(isa: Isa, threads: int) -> None:
    """All codes and activations are one, so each lane of a thread's result counts its multiply-adds."""
    import tvm_ffi

    if reason := missing(isa):
        pytest.skip(reason)
    codes = aligned(3 * 4 * isa.lanes).reshape(3, -1)
    activations = aligned(64 * 16).view(np.int8).reshape(64, 16)
    out = aligned(4 * threads * isa.lanes).view(np.int32).reshape(threads, -1)
    codes.fill(1)
    activations.fill(1)
    compiled(isa)(*map(tvm_ffi.from_dlpack, (codes, activations, out)))
    assert (out == STEPS * products_per_step(isa) // isa.lanes).all()


def test_measured_peak_is_positive_and_carries_its_threads() -> None:
    isa = next(isa for isa in ISAS if missing(isa) is None)
    peak = measure_dot_peak(compiled(isa), isa, 1, seconds=0.01)
    assert peak.threads == 1 and peak.macs_per_second > 1e8
