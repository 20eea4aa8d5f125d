"""Search spaces: the values that each knob of a kernel may take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

from bitwright.errors import InternalError

Value = int | str | bool
Knobs = Mapping[str, Value]
"""One candidate: a value for each knob."""

Key = tuple[tuple[str, Value], ...]


def key_of(knobs: Knobs) -> Key:
    """The candidate as something that can be hashed and compared; the order of the knobs does not matter."""
    return tuple(sorted(knobs.items()))


@dataclass(frozen=True)
class Space:
    """Knobs in order, each with its values.

    Candidates are numbered from 0 to ``len(space) - 1``, the last knob changing fastest. Combinations that no kernel
    exists for may be among them: they fail when they are built, and the search learns to avoid them.
    """

    knobs: tuple[tuple[str, tuple[Value, ...]], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.knobs]
        if not names or len(set(names)) != len(names):
            raise InternalError("the knobs of a search space are not distinct", where=", ".join(names))
        for name, values in self.knobs:
            if not values or len(set(values)) != len(values):
                raise InternalError("the values of a knob are not distinct", where=f"{name}: {values}")

    @classmethod
    def of(cls, knobs: Mapping[str, tuple[Value, ...]]) -> Space:
        return cls(tuple((name, tuple(values)) for name, values in knobs.items()))

    def __len__(self) -> int:
        return prod(len(values) for _, values in self.knobs)

    def __getitem__(self, number: int) -> Knobs:
        if not 0 <= number < len(self):
            raise IndexError(number)
        found: dict[str, Value] = {}
        for name, values in reversed(self.knobs):
            number, index = divmod(number, len(values))
            found[name] = values[index]
        return MappingProxyType({name: found[name] for name, _ in self.knobs})

    def __iter__(self) -> Iterator[Knobs]:
        return (self[number] for number in range(len(self)))

    def __contains__(self, knobs: object) -> bool:
        if not isinstance(knobs, Mapping) or set(knobs) != {name for name, _ in self.knobs}:
            return False
        return all(knobs[name] in values for name, values in self.knobs)

    def neighbours(self, knobs: Knobs) -> Iterator[Knobs]:
        """Candidates that differ from one of this space in exactly one knob."""
        for name, values in self.knobs:
            for value in values:
                if value != knobs[name]:
                    yield MappingProxyType({**knobs, name: value})
