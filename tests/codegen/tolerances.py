"""Largest accepted errors of kernels against their oracles, in one place.

A kernel result y passes when |y - reference| <= absolute + relative * |reference| everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    absolute: float
    relative: float


EXACT = Tolerance(0.0, 0.0)
"""Moves and roundings that have one right answer."""

NORM = Tolerance(2e-6, 2e-6)
"""A float32 sum of W <= 4096 squares in 32 partial sums is off by a few ulp; so is the product with the gain."""

ROPE = Tolerance(1e-6, 1e-6)
"""Two float32 products and one addition of values of order one."""

ELEMENTWISE = Tolerance(5e-7, 5e-7)
"""The exponential is good to 1e-7, and a quotient and two products follow."""

ATTENTION = Tolerance(1e-5, 1e-5)
"""Scores up to 20 carry 1e-6 absolute error each, which the exponential turns into relative error of weights."""


TWO_BYTE_WEIGHTS = Tolerance(6e-4, 1e-5)
"""Weights are rounded to steps of (largest of the chunk) / 16383, coarser where scales differ: by up to 2e-5 each, in
random directions, which over 300 tokens with values up to 5 adds to 4e-4, and at two bits once to 5.7e-4."""


def rounded_weights(bits: int) -> Tolerance:
    """Of attention over values of ``bits`` bits, 336 tokens at most, whose weights become integers.

    Where a chunk has a weight above 2**-(bits + 1) of all so far, ``TWO_BYTE_WEIGHTS``. Elsewhere they are rounded to
    steps of 2**-(bits + 1) / 127 at most, dithered: 1/sqrt(6) of one each (root mean square), over 336 tokens 0.059 *
    2**-(bits + 1) of a value, and 4.5 times as much in the worst result.
    """
    return Tolerance(TWO_BYTE_WEIGHTS.absolute + 0.27 * 2.0 ** -(bits + 1), 1e-5)


WORDS = Tolerance(2e-3, 1e-5)
"""Queries and keys are rounded to multiples of 2**-13.5 of their largest element (a head of 64): with elements up to 8
and 4 that moves scores by 1e-3 (one standard deviation: 3e-4), which moves a mean of values up to 4 by as much."""

EXP2 = Tolerance(1e-38, 3e-6)
"""The polynomial's relative error; 2**-126 is where it ends."""
