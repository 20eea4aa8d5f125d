"""The schedule of a step: no thread reads what another may not have written, and no memory is used twice at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitwright.codegen.step.program import Operand, Operation, StepProgram
from bitwright.codegen.step.schedule import ALIGNMENT, REPLICATED_ELEMENTS, Arena, Schedule, schedule

THREADS = 3


def value(index: int) -> Operand:
    return Operand("value", index)


def operation(inputs: list[Operand | str | int], results: list[Operand], *splits: bool, **more: object) -> Operation:
    workers = tuple(f"w{i}" for i in range(len(splits)))
    return Operation("op", workers, splits, tuple(inputs), tuple(results), elements=64, **more)  # type: ignore[arg-type]


def modes(found: Schedule) -> list[tuple[str, bool]]:
    return [(task.mode, task.barrier) for task in found.tasks]


def test_rows_are_replicated_and_only_shared_results_are_waited_for() -> None:
    program = StepProgram(
        (
            operation([Operand("input", 0)], [value(0)], False),  # a norm: everybody has its own
            operation([value(0), Operand("weight", 0)], [value(1)], True),  # a matrix: shares
            operation([value(1)], [value(2)], False),  # reads all shares
            operation([value(2)], [value(3)], False),  # reads its own
            operation([value(3), value(1)], [Operand("output", 0)], True),
        ),
        (256, 256, 256, 256),
    )
    assert modes(schedule(program, 2)) == [
        ("replicated", False),
        ("split", False),
        ("replicated", True),
        ("replicated", False),
        ("split", False),
    ]
    assert [place.private for place in schedule(program, 2).places] == [True, False, True, True]


def test_phases_meet_before_their_scratch_is_read() -> None:
    attention = operation([Operand("state", 0)], [value(1)], True, False, scratch=(value(0),))
    program = StepProgram((attention, operation([value(1)], [Operand("output", 0)], True)), (-128, 256))
    found = schedule(program, THREADS)
    assert modes(found) == [("split", False), ("replicated", True), ("split", False)]
    assert found.shared_bytes == 128 * THREADS and found.private_bytes == 256


def test_what_may_not_be_repeated_is_done_once_and_waited_for() -> None:
    append = operation([value(0), Operand("state", 0)], [], False, in_place=(1,), repeatable=False)
    program = StepProgram(
        (
            operation([Operand("input", 0)], [value(0)], False),
            append,
            operation([Operand("state", 0)], [value(1)], False),
            append,  # the state is still read by others
        ),
        (64, 64),
    )
    assert modes(schedule(program, 2)) == [
        ("replicated", False),
        ("single", False),
        ("replicated", True),
        ("single", True),
    ]


def test_long_rows_and_results_of_the_step_are_computed_once() -> None:
    long = Operation("long", ("w",), (False,), (Operand("input", 0),), (value(0),), elements=REPLICATED_ELEMENTS + 1)
    program = StepProgram((long, operation([value(0)], [Operand("output", 1)], False)), (1 << 20,))
    assert modes(schedule(program, 2)) == [("single", False), ("single", True)]


def test_memory_of_a_private_value_is_used_again() -> None:
    chain = [operation([Operand("input", 0)], [value(0)], False)]
    chain += [operation([value(i)], [value(i + 1)], False) for i in range(9)]
    found = schedule(StepProgram(tuple(chain), (100,) * 10), 2)
    assert found.private_bytes == 2 * 128 and found.shared_bytes == 0


@pytest.mark.parametrize("sizes", [[1], [64, 65], [200, 3, 64]])
def test_pieces_of_an_arena_do_not_overlap_and_come_back(sizes: list[int]) -> None:
    arena = Arena()
    starts = [arena.take(size) for size in sizes]
    assert all(start % ALIGNMENT == 0 for start in starts)
    assert all(a + size <= b for a, size, b in zip(starts, sizes, starts[1:], strict=False))
    for start, size in reversed(list(zip(starts, sizes, strict=True))):
        arena.give_back(start, size)
    assert arena.take(arena.size) == 0


@st.composite
def programs(draw: st.DrawFn) -> StepProgram:
    """Random chains of operations on values, two states and two outputs."""
    operations: list[Operation] = []
    sizes: list[int] = []
    for _ in range(draw(st.integers(1, 14))):
        known: list[Operand] = [
            value(i) for o in operations for r in o.results if r.region == "value" for i in [r.index]
        ]
        inputs = draw(st.lists(st.sampled_from([*known, Operand("input", 0), Operand("weight", 0)]), max_size=3))
        inputs = [*inputs, *draw(st.lists(st.sampled_from([Operand("state", 0), Operand("state", 1)]), max_size=1))]
        in_place = tuple(i for i, o in enumerate(inputs) if o.region == "state" and draw(st.booleans()))
        splits = draw(st.sampled_from([(True,), (False,), (True, False), (True, True)]))
        scratch = []
        if len(splits) > 1:
            sizes.append(draw(st.sampled_from([-64, 128])))
            scratch = [value(len(sizes) - 1)]
        sizes.append(draw(st.integers(1, 300)))
        results = [value(len(sizes) - 1)]
        repeatable, elements = draw(st.booleans()), draw(st.sampled_from([8, REPLICATED_ELEMENTS + 1]))
        workers = tuple(f"w{i}" for i in range(len(splits)))
        operations.append(
            Operation(
                "op", workers, splits, tuple(inputs), tuple(results), tuple(scratch), in_place, repeatable, elements
            )
        )
    return StepProgram(tuple(operations), tuple(sizes))


@dataclass(frozen=True)
class Access:
    """A read or write of ``size`` bytes: of shared memory, of a thread's own, or of a state."""

    space: str
    start: int
    size: int
    task: int
    epoch: int
    writes: bool
    repeated: bool

    def overlaps(self, other: Access) -> bool:
        same = self.space == other.space
        return same and self.start < other.start + other.size and other.start < self.start + self.size


def accesses(program: StepProgram, found: Schedule) -> Iterator[Access]:
    epoch = 0
    for number, task in enumerate(found.tasks):
        epoch += task.barrier
        op = program.operations[task.operation]
        final = task.phase == len(op.workers) - 1
        touched = [(o, i in op.in_place) for i, o in enumerate(op.inputs) if isinstance(o, Operand)]
        touched += [(o, True) for o in op.results if final] + [
            (o, not final) for o in op.scratch if len(op.workers) > 1
        ]
        for operand, writes in touched:
            repeated = task.mode == "replicated"
            if operand.region == "state":
                yield Access(f"state{operand.index}", 0, 1, number, epoch, writes, repeated)
            if operand.region == "value":
                place = found.places[operand.index]
                size = program.value_bytes[operand.index]
                space = "private" if place.private else "shared"
                yield Access(
                    space, place.offset, size if size > 0 else -size * THREADS, number, epoch, writes, repeated
                )


@given(programs())
def test_a_barrier_stands_between_a_write_and_every_other_access(program: StepProgram) -> None:
    found = schedule(program, THREADS)
    everything = list(accesses(program, found))
    for one in everything:
        for other in everything:
            if not one.overlaps(other) or one.task >= other.task or not (one.writes or other.writes):
                continue
            # A thread's own memory, and state in which every thread writes the same bytes, need no barrier.
            if one.space == "private" or (one.repeated and one.writes) or (other.repeated and other.writes):
                continue
            assert one.epoch < other.epoch, (one, other)


@given(programs())
def test_values_that_are_needed_at_the_same_time_lie_apart(program: StepProgram) -> None:
    found = schedule(program, THREADS)
    lives: dict[int, list[int]] = {}
    for number, op in enumerate(program.operations):
        for operand in (*op.inputs, *op.results, *op.scratch):
            if isinstance(operand, Operand) and operand.region == "value":
                lives.setdefault(operand.index, []).append(number)
    for a, first in lives.items():
        for b, second in lives.items():
            if a >= b or found.places[a].private != found.places[b].private:
                continue
            if first[0] <= second[-1] and second[0] <= first[-1]:
                starts = [found.places[i].offset for i in (a, b)]
                sizes = [s if s > 0 else -s * THREADS for s in (program.value_bytes[a], program.value_bytes[b])]
                assert starts[0] + sizes[0] <= starts[1] or starts[1] + sizes[1] <= starts[0]
