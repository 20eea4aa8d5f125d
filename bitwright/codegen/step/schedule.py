"""Who computes what, where it lies, and where threads wait: the schedule of a decode step.

Each phase of an operation becomes one of

- *split*: every thread computes its share and writes it to memory that all see;
- *replicated*: every thread computes everything for itself, into memory of its own. Nobody has to wait for the result,
  which for a row of a few hundred numbers is cheaper than one barrier;
- *single*: the first thread computes it; for what is too long to repeat or may not be repeated.

A barrier stands before the first phase that reads what another thread has written since the last one. Shared memory is
given to another value only after a barrier that follows its last reader, so that reuse needs no barrier of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from bitwright.codegen.step.program import Operand, Operation, StepProgram

REPLICATED_ELEMENTS = 16384
"""Longest row that every thread computes for itself: some microseconds, while a barrier costs a quarter of one."""

ALIGNMENT = 64
MOST_THREADS = 64
"""Threads that a step has room for at least, however few processors there are where it is compiled: what is compiled on
one machine runs on another, and room costs nothing but addresses."""
Mode = Literal["split", "replicated", "single"]


@dataclass(frozen=True)
class Placement:
    """Where a value lies: ``offset`` bytes into the memory that all threads share, or into each thread's own."""

    private: bool
    offset: int


@dataclass(frozen=True)
class Task:
    """One phase: which function runs, in which mode, and whether all threads meet before it."""

    operation: int
    phase: int
    mode: Mode
    barrier: bool


@dataclass(frozen=True)
class Schedule:
    """The tasks in order, the place of each value, and the memory that they take.

    Attributes:
        threads: the most threads that scratch tensors have room for.
    """

    tasks: tuple[Task, ...]
    places: tuple[Placement, ...]
    shared_bytes: int
    private_bytes: int
    threads: int

    @property
    def barriers(self) -> int:
        """Barriers a thread passes in one step, the last one, at the end, included."""
        return 1 + sum(task.barrier for task in self.tasks)

    def arena_bytes(self, threads: int) -> int:
        """Bytes of memory that a step on ``threads`` threads works in."""
        return self.shared_bytes + threads * self.private_bytes


class Arena:
    """Offsets into one piece of memory: given out first-fit, in multiples of the alignment."""

    def __init__(self) -> None:
        self.size = 0
        self._free: list[tuple[int, int]] = []

    def take(self, nbytes: int) -> int:
        wanted = -(-max(nbytes, 1) // ALIGNMENT) * ALIGNMENT
        for index, (start, length) in enumerate(self._free):
            if length >= wanted:
                rest = [(start + wanted, length - wanted)] if length > wanted else []
                self._free[index : index + 1] = rest
                return start
        start, self.size = self.size, self.size + wanted
        return start

    def give_back(self, start: int, nbytes: int) -> None:
        length = -(-max(nbytes, 1) // ALIGNMENT) * ALIGNMENT
        merged: list[tuple[int, int]] = []
        for piece in sorted([*self._free, (start, length)]):
            if merged and merged[-1][0] + merged[-1][1] == piece[0]:
                merged[-1] = (merged[-1][0], merged[-1][1] + piece[1])
            else:
                merged.append(piece)
        self._free = merged


def most_threads(cores: int) -> int:
    """How many threads a step should have room for that is compiled for ``cores`` processors."""
    return max(cores, MOST_THREADS)


def schedule(program: StepProgram, threads: int) -> Schedule:
    """The schedule for up to ``threads`` threads."""
    return _Scheduler(program, threads).run()


@dataclass
class _Scheduler:
    program: StepProgram
    threads: int
    shared: Arena = field(default_factory=Arena)
    private: Arena = field(default_factory=Arena)
    places: dict[int, Placement] = field(default_factory=dict)
    # What other threads may not have seen yet, and what they may still read, since the last barrier.
    written: set[tuple[str, int]] = field(default_factory=set)
    read: set[tuple[str, int]] = field(default_factory=set)
    waiting: list[int] = field(default_factory=list)

    def run(self) -> Schedule:
        last = _last_uses(self.program)
        tasks = []
        for number, operation in enumerate(self.program.operations):
            for phase in range(len(operation.workers)):
                tasks.append(self._task(number, operation, phase))
            for value in last[number]:
                self._retire(value)
        return Schedule(
            tuple(tasks),
            tuple(self.places[i] for i in range(len(self.program.value_bytes))),
            self.shared.size,
            self.private.size,
            self.threads,
        )

    def _task(self, number: int, operation: Operation, phase: int) -> Task:
        final = phase == len(operation.workers) - 1
        mode = _mode(operation, phase)
        reads = {key for operand in _tensors(operation.inputs) if (key := self._key(operand))}
        in_place = {key for i in operation.in_place if (key := self._key(operation.inputs[i]))}
        scratch = {("value", operand.index) for operand in operation.scratch}
        outputs = {(o.region, o.index) for o in operation.results} if final else set()
        if phase:
            reads |= scratch
        barrier = bool(reads & self.written)
        if mode != "replicated":
            barrier |= bool((in_place | {key for key in outputs if key[0] == "output"}) & (self.written | self.read))
        if barrier:
            self._pass_barrier()
        if phase == 0:
            for operand in operation.scratch:
                self._place(operand.index, private=False)
        if final:
            for operand in operation.results:
                if operand.region == "value":
                    self._place(operand.index, private=mode == "replicated")
        self.read |= reads
        if mode != "replicated":
            self.written |= in_place | outputs | (set() if final else scratch)
        return Task(number, phase, mode, barrier)

    def _key(self, operand: Operand | str | int) -> tuple[str, int] | None:
        """What other threads could see of an operand; None for what is never written, or is a thread's own."""
        if not isinstance(operand, Operand) or operand.region in ("weight", "input"):
            return None
        if operand.region == "value" and self.places[operand.index].private:
            return None
        return (operand.region, operand.index)

    def _pass_barrier(self) -> None:
        self.written.clear()
        self.read.clear()
        for value in self.waiting:
            self.shared.give_back(self.places[value].offset, self._bytes(value))
        self.waiting.clear()

    def _place(self, value: int, *, private: bool) -> None:
        self.places[value] = Placement(private, (self.private if private else self.shared).take(self._bytes(value)))

    def _retire(self, value: int) -> None:
        if self.places[value].private:
            self.private.give_back(self.places[value].offset, self._bytes(value))
        else:
            self.waiting.append(value)

    def _bytes(self, value: int) -> int:
        size = self.program.value_bytes[value]
        return size if size >= 0 else -size * self.threads


def _mode(operation: Operation, phase: int) -> Mode:
    if operation.splits[phase]:
        return "split"
    final = phase == len(operation.workers) - 1
    results_are_values = all(operand.region == "value" for operand in operation.results)
    if final and operation.repeatable and results_are_values and operation.elements <= REPLICATED_ELEMENTS:
        return "replicated"
    return "single"


def _tensors(operands: tuple[Operand | str | int, ...]) -> Iterator[Operand]:
    return (operand for operand in operands if isinstance(operand, Operand))


def _last_uses(program: StepProgram) -> dict[int, list[int]]:
    """Values that are needed no more after each operation."""
    last: dict[int, int] = {}
    for number, operation in enumerate(program.operations):
        for operand in (*_tensors(operation.inputs), *operation.results, *operation.scratch):
            if operand.region == "value":
                last[operand.index] = number
    found: dict[int, list[int]] = defaultdict(list)
    for value, number in last.items():
        found[number].append(value)
    return found
