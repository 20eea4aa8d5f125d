"""The read-bandwidth kernel reads everything it says it reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bitwright.autotune.bandwidth import (
    OUT_WORDS,
    build_read_bandwidth,
    measure_read_bandwidth,
    read_block,
)
from bitwright.codegen.isa import AVX2, GENERIC, Isa
from bitwright.errors import InternalError


@pytest.fixture(scope="module", params=[AVX2, GENERIC], ids=lambda isa: isa.name)
def kernel(request: pytest.FixtureRequest) -> tuple[Any, Isa]:
    from bitwright.codegen.builder import build, host_features, read_host_target

    isa: Isa = request.param
    if not isa.runs_with(host_features()):
        pytest.skip(f"this machine does not execute {isa.name}")
    return build(build_read_bandwidth(isa), read_host_target())["read_bandwidth"], isa


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_word_is_summed(kernel: tuple[Any, Isa], threads: int) -> None:
    import tvm

    read, isa = kernel
    nbytes = threads * 5 * read_block(isa)
    buffer = np.random.default_rng(threads).integers(0, 256, nbytes, np.uint8)
    out = tvm.runtime.tensor(np.zeros(threads * OUT_WORDS, np.uint64))
    read(tvm.runtime.tensor(buffer), out)
    lanes = isa.lanes // 2
    expected = buffer.view(np.uint64).reshape(threads, -1, lanes).sum(1)
    np.testing.assert_array_equal(out.numpy().reshape(threads, -1, lanes)[:, 0], expected)


def test_measures_one_thread_and_all(kernel: tuple[Any, Isa]) -> None:
    read, isa = kernel
    figures = list(measure_read_bandwidth(read, isa, 2, {"l2": 1 << 18}, seconds=0.01))
    assert [(f.level, f.threads, f.nbytes) for f in figures] == [("l2", 1, 1 << 18), ("l2", 2, 1 << 18)]
    # A launch of two threads waits for milliseconds where the machine is busy.
    assert all(1e6 < f.bytes_per_second < 1e13 for f in figures)


def test_refuses_a_buffer_that_is_not_read() -> None:
    with pytest.raises(InternalError, match="64 bytes are too few for 1 threads"):
        list(measure_read_bandwidth(None, AVX2, 1, {"tiny": 64}))
