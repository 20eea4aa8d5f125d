"""The head map against its oracle."""

from __future__ import annotations

import numpy as np
import pytest

from bitwright.codegen.head_map import HeadMapSpec, build_head_map
from bitwright.codegen.reference.head_map import head_map
from bitwright.errors import UnsupportedError

from .harness import assert_close, call, empty
from .tolerances import ATTENTION

RNG = np.random.default_rng(8)


@pytest.mark.parametrize(
    ("heads", "groups", "size", "shift", "lanes"),
    [(9, 3, 64, False, 16), (3, 3, 64, True, 16), (4, 2, 80, True, 8), (2, 1, 256, False, 16), (6, 2, 16, True, 8)],
)
@pytest.mark.parametrize("rows", [1, None])
def test_matches_oracle(heads: int, groups: int, size: int, shift: bool, lanes: int, rows: int | None) -> None:
    spec = HeadMapSpec(heads, groups, size, shift, rows=1 if rows else None, lanes=lanes)
    matrices = (RNG.standard_normal((groups, size, size)) * size**-0.5).astype("float32")
    offset = RNG.standard_normal((groups, size)).astype("float32") if shift else None
    for n in (1,) if rows else (1, 5, 40):
        x = RNG.standard_normal((n, heads * size)).astype("float32")
        inputs = [x, matrices] if offset is None else [x, matrices, offset]
        (y,) = call(build_head_map, spec, *inputs, empty(*x.shape), outputs=(len(inputs),))
        assert_close(y, head_map(x, matrices, offset), ATTENTION)


def test_groups_that_do_not_divide_the_heads_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="9 heads in 2 groups"):
        HeadMapSpec(9, 2, 64, False)
