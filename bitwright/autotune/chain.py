"""The time of a kernel inside a decode step: a step that is nothing but many calls of it, on different weights.

No launch and no call from Python is measured: the threads run already, a barrier stands before each call whose work
they share, as in a real step, and the processor's cycle counter is read between calls. Weights are cold (see
``arena``), activations and results are in cache.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright.autotune.arena import Arena, aligned_zeros
from bitwright.autotune.step_kernel import StepKernel
from bitwright.codegen.step.barrier import WORDS
from bitwright.codegen.step.program import Operand, Operation, StepProgram
from bitwright.codegen.step.schedule import Placement, Schedule, Task
from bitwright.target import Target
from bitwright.tvm_runtime import use_threads

CALL_BYTES = 4 << 20
"""Weights that one call of a chain reads: the kernel is called often enough for this."""

ROUNDS = 2
"""Times that one run reads the whole working set, without a pause: decoding does, and part of the weights is then found
in the last cache level, which others take over as soon as it is not used. The last round is timed."""

MOST_BURST, LEAST_BURST = 128, 2

MOST_CALLS, LEAST_CALLS = 48, 6


class Chain:
    """A compiled step that calls one kernel ``calls`` times.

    Args:
        threads: that run it.
    """

    def __init__(self, kernel: StepKernel, threads: int, target: Target, arena: Arena) -> None:
        self.kernel, self.threads = kernel, threads
        self.calls = min(max(CALL_BYTES // max(kernel.cold_bytes, 1), LEAST_CALLS), MOST_CALLS)
        self._arena, self._generation = arena, 0
        program, self._schedule = _program(kernel, threads, self.calls)
        self._function = _compile(kernel, program, self._schedule, target)
        self._hot: dict[str, npt.NDArray[Any]] = {}
        self._tables: list[npt.NDArray[np.uint64]] = []
        self._ticks: list[npt.NDArray[np.int64]] = []
        self._arguments: list[tuple[Any, ...]] = []
        self._began = 0.0

    def place(self) -> None:
        """Take memory for what stays in cache: before runs, and again after the arena was released."""
        import tvm_ffi

        kernel, schedule = self.kernel, self._schedule
        self._hot = {
            spec.name: self._arena.hot(spec)
            for spec in (*kernel.arguments, *kernel.scratch)
            if spec.shape and spec.name not in kernel.cold
        }
        for name in kernel.zeroed:
            self._hot[name][...] = 0
        entries = self.calls * len(kernel.arguments) + len(kernel.scratch)
        burst = -(-ROUNDS * self._arena.nbytes // (self.calls * max(kernel.cold_bytes, 1)))
        burst = min(max(burst, LEAST_BURST), MOST_BURST)
        self._tables = [aligned_zeros(entries, "uint64") for _ in range(burst)]
        self._ticks = [aligned_zeros(len(schedule.tasks) + 1, "int64") for _ in range(burst)]
        work = aligned_zeros(schedule.arena_bytes(self.threads), "uint8")
        words = aligned_zeros(self.threads * WORDS, "int64")
        tokens, best, state = (aligned_zeros(1, dtype) for dtype in ("int64", "int64", "uint64"))
        logits = aligned_zeros(1, "float32").reshape(1, 1)
        self._generation = 0
        self._arguments = [
            tuple(map(tvm_ffi.from_dlpack, (tokens, logits, best, table, state, work, words, ticks)))
            for table, ticks in zip(self._tables, self._ticks, strict=True)
        ]

    def run(self) -> npt.NDArray[np.int64]:
        """Cycles of each call of the kernel [calls of the chain, calls] in one run, on weights out of cache."""
        for table in self._tables:
            self._point(table)
        use_threads(self.threads)
        self._began = time.perf_counter()
        for arguments in self._arguments:
            self._generation += 1
            self._function(*arguments, self.kernel.position, self.threads, self._generation, 1)
        cycles = np.stack([np.diff(ticks).reshape(self.calls, -1).sum(axis=1) for ticks in self._ticks])
        return cycles.astype(np.int64)

    def _point(self, table: npt.NDArray[np.uint64]) -> None:
        """Let a table of tensors name the next weights."""
        width = len(self.kernel.arguments)
        for call in range(self.calls):
            for index, spec in enumerate(self.kernel.arguments):
                if spec.shape:
                    tensor = self._arena.cold(spec) if spec.name in self.kernel.cold else self._hot[spec.name]
                    table[call * width + index] = tensor.ctypes.data
        for index, spec in enumerate(self.kernel.scratch):
            table[self.calls * width + index] = self._hot[spec.name].ctypes.data

    def mean_cycles(self) -> float:
        """Mean cycles of a call in the last round of one run."""
        cycles = self.run()
        return float(cycles[-max(len(cycles) // ROUNDS, 1) :].mean())

    @property
    def started(self) -> tuple[float, int]:
        """When the last run began, in seconds of Python's clock, and the cycle counter then."""
        return self._began, int(self._ticks[0][0])


def cycles_per_second(chain: Chain, seconds: float = 0.05) -> float:
    """How fast the cycle counter runs (it counts time, not the core's clock)."""
    chain.run()
    began, first = chain.started
    time.sleep(seconds)
    chain.run()
    again, second = chain.started
    return (second - first) / (again - began)


def _program(kernel: StepKernel, threads: int, calls: int) -> tuple[StepProgram, Schedule]:
    """The chain, scheduled by hand: its tensors are numbered as weights, so that no barrier is found superfluous."""
    width, inputs = len(kernel.arguments), len(kernel.arguments) - kernel.results
    private = [_whole_lines(spec.nbytes) for spec in kernel.arguments[inputs:]] if kernel.replicated else []
    offsets = [sum(private[:i]) for i in range(len(private))]
    places = tuple(Placement(True, offset) for offset in offsets)
    scratch = tuple(Operand("weight", calls * width + i) for i in range(len(kernel.scratch)))
    operations, tasks = [], []
    for call in range(calls):
        operands: list[Operand | str | int] = [
            Operand("weight", call * width + i) if spec.shape else "position" for i, spec in enumerate(kernel.arguments)
        ]
        results = tuple(
            Operand("value", i) if kernel.replicated else Operand("weight", call * width + inputs + i)
            for i in range(kernel.results)
        )
        operations.append(
            Operation(
                kernel.name,
                tuple(_worker_name(kernel, phase) for phase in range(len(kernel.workers))),
                kernel.splits,
                tuple(operands[:inputs]),
                results,
                scratch,
            )
        )
        for phase, split in enumerate(kernel.splits):
            final = phase == len(kernel.splits) - 1
            mode: Any = "split" if split else "replicated" if final and kernel.replicated else "single"
            tasks.append(Task(call, phase, mode, barrier=phase > 0 or split))
    schedule = Schedule(tuple(tasks), places, 64, max(sum(private), 64), threads)
    return StepProgram(tuple(operations), tuple(private)), schedule


def _worker_name(kernel: StepKernel, phase: int) -> str:
    return f"{kernel.name}_phase{phase}"


def _whole_lines(nbytes: int) -> int:
    return -(-nbytes // 64) * 64


def _compile(kernel: StepKernel, program: StepProgram, schedule: Schedule, target: Target) -> Any:
    import tvm

    from bitwright.codegen.step.emit import NAME, step_functions
    from bitwright.codegen.tir_pipeline import register

    workers = {_worker_name(kernel, phase): worker for phase, worker in enumerate(kernel.workers)}
    module = tvm.IRModule(step_functions(program, schedule, workers, 1, target.triple))
    return tvm.tirx.build(module, target=target.tvm(), pipeline=register())[NAME]
