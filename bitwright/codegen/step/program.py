"""A decode step as a list of operations on tensors: what is computed, before it is known where and by whom.

The step has no control flow and every shape is known, so that memory, the division of work and the places where threads
must wait for each other are all decided at compile time (``schedule``), and one function runs it (``emit``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Region = Literal["weight", "state", "input", "output", "value"]


@dataclass(frozen=True)
class Operand:
    """A tensor, or a part of one that starts ``offset`` bytes into it.

    Attributes:
        region: ``weight`` and ``state`` are numbered as the artifact's tensors are, ``input`` and ``output`` as the
            step's arguments are; a ``value`` is computed by one operation of the step and read by later ones.
        index: the number within the region.
    """

    region: Region
    index: int
    offset: int = 0

    def at(self, offset: int) -> Operand:
        """The part that starts ``offset`` bytes further on."""
        return Operand(self.region, self.index, self.offset + offset)


@dataclass(frozen=True)
class Operation:
    """One kernel call.

    Attributes:
        name: the kernel's name in profiles.
        workers: a function per phase; all take the same arguments.
        splits: per phase, whether the threads share its work.
        inputs: tensors that are read (and, for those in ``in_place``, written), in the order of the arguments.
        results: what the last phase writes, after the inputs among the arguments.
        scratch: what the phases before it write for later phases, after the results among the arguments.
        scalars: after the inputs, values of the step's scalars: names of its integer arguments, or constants.
        in_place: positions of inputs that are written too.
        repeatable: every thread may compute the whole for itself, writes in place included.
        elements: elements of the results, a measure of the work of an unsplit phase.
        reads: bytes of weights and state that are read once; what the roofline of the operation is made of.
    """

    name: str
    workers: tuple[str, ...]
    splits: tuple[bool, ...]
    inputs: tuple[Operand | str | int, ...]
    results: tuple[Operand, ...]
    scratch: tuple[Operand, ...] = ()
    in_place: tuple[int, ...] = ()
    repeatable: bool = True
    elements: int = 0
    reads: int = 0


@dataclass(frozen=True)
class StepProgram:
    """The operations of a step in order.

    Attributes:
        operations: in order of computation.
        value_bytes: size of each value; -n stands for n bytes per thread.
        scalars: names of the step's integer arguments.
    """

    operations: tuple[Operation, ...]
    value_bytes: tuple[int, ...]
    scalars: tuple[str, ...] = ("position",)
