"""Elements of rows in another order, exactly."""

from __future__ import annotations

import numpy as np
import pytest

from bitwright.codegen.order import PutInOrderSpec, build_put_in_order, put_in_order_team_kernel
from bitwright.codegen.team import standalone
from bitwright.errors import BitwrightError

from .linear_case import tensor


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("width", [1, 37, 4096])
def test_one_row(width: int, threads: int) -> None:
    from bitwright.codegen.builder import build, read_host_target

    spec = PutInOrderSpec(width, 1)
    kernel = build(standalone(put_in_order_team_kernel(spec), threads), read_host_target())[spec.name]
    check(kernel, 1, width)


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_rows(rows: int) -> None:
    from bitwright.codegen.builder import build, read_host_target

    spec = PutInOrderSpec(1000)
    check(build(build_put_in_order(spec), read_host_target())[spec.name], rows, 1000)


def check(kernel: object, rows: int, width: int) -> None:
    rng = np.random.default_rng(width)
    x, places = rng.standard_normal((rows, width), dtype=np.float32), rng.permutation(width).astype(np.int32)
    y = tensor(np.full((rows, width), np.nan, np.float32))
    kernel(tensor(x), tensor(places), y)  # type: ignore[operator]
    np.testing.assert_array_equal(y.numpy(), x[:, places])


def test_no_elements_are_refused() -> None:
    with pytest.raises(BitwrightError, match="width"):
        PutInOrderSpec(0)
