"""Steps put together by hand run on one thread and on two as NumPy says: barriers, sharing, own memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitwright.codegen.argmax import argmax_team_kernel
from bitwright.codegen.layout import TensorSpec
from bitwright.codegen.step.barrier import WORDS, support_ir
from bitwright.codegen.step.program import Operand, Operation, StepProgram
from bitwright.codegen.step.schedule import schedule
from bitwright.codegen.team import Phase, TeamKernel, share
from bitwright.runtime.arrays import aligned_zeros

WIDTH, STAGES = 37, 24


def reverse_kernel() -> TeamKernel:
    """y[i] = 2 x[W - 1 - i] + i: a thread reads what the other has written."""

    def emit(buffers: Mapping[str, Any], thread: Any, threads: Any) -> None:
        from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

        from bitwright.codegen.builder import loop

        start, end = share(WIDTH, thread, threads)
        with loop(end - start, start=start) as i:
            value = buffers["x"][0, T.int64(WIDTH - 1) - i] * T.float32(2) + T.cast(i, "float32")
            T.buffer_store(buffers["y"], value, [T.int64(0), i])

    return TeamKernel("reverse", tuple(TensorSpec(n, "float32", (1, WIDTH)) for n in "xy"), 1, (Phase(emit),))


def halve_kernel() -> TeamKernel:
    """y = x / 2, small: every thread for itself."""

    def emit(buffers: Mapping[str, Any], _thread: Any, _threads: Any) -> None:
        from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

        from bitwright.codegen.builder import loop

        with loop(WIDTH) as i:
            T.buffer_store(buffers["y"], buffers["x"][0, i] * T.float32(0.5), [T.int64(0), i])

    arguments = tuple(TensorSpec(n, "float32", (1, WIDTH)) for n in "xy")
    return TeamKernel("halve", arguments, 1, (Phase(emit, split=False),))


@cache
def step() -> tuple[Any, Any]:
    """(compiled decode_step, its schedule): halve and reverse in turns, then the largest element."""
    import tvm
    from tvm.target import codegen

    from bitwright.codegen.builder import read_host_target
    from bitwright.codegen.step.emit import step_functions
    from bitwright.codegen.step.worker import team_worker
    from bitwright.codegen.tir_pipeline import register

    kernels = {k.name: k for k in (reverse_kernel(), halve_kernel(), argmax_team_kernel(WIDTH, 8))}
    workers = {f"{n}{p}": team_worker(k, p, 2) for n, k in kernels.items() for p in range(len(k.phases))}
    operations, sizes = [], [4 * WIDTH] * (2 * STAGES - 1)
    source = Operand("weight", 0)
    for stage in range(STAGES):
        mine, all_ = Operand("value", 2 * stage), Operand("value", 2 * stage + 1)
        result = all_ if stage < STAGES - 1 else Operand("output", 0)
        operations.append(Operation("halve", ("halve0",), (False,), (source,), (mine,), elements=WIDTH))
        operations.append(Operation("reverse", ("reverse0",), (True,), (mine,), (result,), elements=WIDTH))
        source = result
    scratch = tuple(Operand("value", len(sizes) + i) for i in range(2))
    best = Operation("argmax", ("argmax0", "argmax1"), (True, False), (source,), (Operand("output", 1),), scratch)
    program = StepProgram((*operations, best), (*sizes, -64, -64))
    plan = schedule(program, 2)
    triple = str(codegen.llvm_get_system_triple())
    module = tvm.IRModule(step_functions(program, plan, workers, WIDTH, triple))
    return tvm.tirx.build(module, target=read_host_target(2), pipeline=register())["decode_step"], plan


def run(threads: int, source: np.ndarray[Any, Any], generations: list[int]) -> tuple[np.ndarray[Any, Any], int]:
    import tvm_ffi

    from bitwright.tvm_runtime import use_threads

    use_threads(threads)
    function, plan = step()
    logits, best = aligned_zeros((1, WIDTH), "float32"), aligned_zeros((1,), "int64")
    weight = aligned_zeros((1, WIDTH), "float32")
    weight[:] = source
    weights, state = aligned_zeros((1,), "uint64"), aligned_zeros((1,), "uint64")
    weights[0] = weight.ctypes.data
    arena = aligned_zeros((plan.arena_bytes(2),), "uint8")
    words, ticks = aligned_zeros((2 * WORDS,), "int64"), aligned_zeros((len(plan.tasks) + 1,), "int64")
    tokens = aligned_zeros((1,), "int64")
    arrays = [tvm_ffi.from_dlpack(a) for a in (tokens, logits, best, weights, state, arena, words, ticks)]
    for generation in generations:
        function(*arrays, 0, threads, generation, 1)
    assert (np.diff(ticks) >= 0).all() and ticks[0] > 0
    return logits.copy(), int(best[0])


@pytest.mark.parametrize("threads", [1, 2])
def test_a_step_computes_what_its_operations_say(threads: int) -> None:
    source = np.random.default_rng(0).standard_normal((1, WIDTH)).astype("float32")
    expected = source
    for _ in range(STAGES):
        expected = (expected * np.float32(0.5))[:, ::-1] * np.float32(2) + np.arange(WIDTH, dtype="float32")
    logits, best = run(threads, source, list(range(1, 200)))
    np.testing.assert_array_equal(logits, expected)
    assert best == expected.argmax()


@contextmanager
def one_processor() -> Iterator[None]:
    """All threads of this process share a processor."""
    threads = [int(task.name) for task in Path("/proc/self/task").iterdir()]
    before = os.sched_getaffinity(0)
    try:
        for thread in threads:
            os.sched_setaffinity(thread, {min(before)})
        yield
    finally:
        for thread in threads:
            os.sched_setaffinity(thread, before)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux")
def test_threads_that_share_a_processor_let_each_other_run() -> None:
    source = np.random.default_rng(1).standard_normal((1, WIDTH)).astype("float32")
    expected, best = run(2, source, [1])
    with one_processor():
        logits, found = run(2, source, list(range(1, 1000)))
    np.testing.assert_array_equal(logits, expected)
    assert found == best


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_have_no_best_token(threads: int, bad: float) -> None:
    source = np.zeros((1, WIDTH), "float32")
    source[0, 5] = bad
    assert run(threads, source, [1])[1] == -1


def test_among_equals_the_first_is_best() -> None:
    import tvm

    from bitwright.codegen.builder import build, read_host_target
    from bitwright.codegen.team import standalone

    for width in (7, 64, 1003):
        kernel = build(standalone(argmax_team_kernel(width, 8), 2), read_host_target(2))["argmax"]
        random = np.random.default_rng(width)
        for _ in range(20):
            x = random.integers(-3, 3, (1, width)).astype("float32")
            best = tvm.runtime.tensor(np.zeros(1, "int64"))
            kernel(tvm.runtime.tensor(x), best)
            assert best.numpy()[0] == x.argmax()


@pytest.mark.parametrize(
    ("triple", "pause"), [("x86_64-linux", "sse2.pause"), ("aarch64-linux", "aarch64.hint"), ("riscv64", None)]
)
def test_the_barrier_spins_as_the_machine_likes(triple: str, pause: str | None) -> None:
    text = support_ir(triple)
    assert ("llvm." in text) == (pause is not None) and (pause or "") in text
