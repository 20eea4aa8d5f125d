"""Checks that kernel specs share: a spec that no kernel can be built for is refused when it is made."""

from __future__ import annotations

from collections.abc import Sequence

from bitwright.errors import UnsupportedError

LANES = (4, 8, 16)


def check_lanes(lanes: int) -> None:
    if lanes not in LANES:
        raise UnsupportedError(
            f"no kernels with {lanes} float32 lanes",
            where="kernel spec",
            limit=f"lanes are {', '.join(map(str, LANES))}",
            remedy="use 8 for AVX2, 16 for AVX-512, 4 for 128-bit vectors",
        )


def check_positive(name: str, value: int) -> None:
    if value < 1:
        raise UnsupportedError(f"{name} is {value}", where="kernel spec", limit="at least 1", remedy="check the model")


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        known = ", ".join(map(str, choices))
        raise UnsupportedError(
            f"no kernel for {name} '{value}'", where="kernel spec", limit=known, remedy="use one of them"
        )
