"""How far training goes along the way that its steps went: held-out text decides."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bitwright.frontend.distill.train import SHARES, best_share

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(("lowest", "share"), [(0.2, 0.25), (0.6, 0.5), (1.1, 1.0), (1.8, 2.0), (9.0, 4.0)])
def test_steps_that_went_too_far_or_not_far_enough_are_made_shorter_or_longer(lowest: float, share: float) -> None:
    """The divergence grows with the square of the distance from ``lowest``, where training went from 0 to 1."""
    leaf = torch.ones(3)
    student: Any = SimpleNamespace(leaves=lambda: [leaf])
    measured: list[float] = []

    def measure() -> float:
        measured.append(float(leaf[0]))
        return 2 + (measured[-1] - lowest) ** 2

    found = best_share(student, [torch.zeros(3)], 2.5, measure)
    assert (found.before, found.share) == (2.5, share)
    assert found.after == pytest.approx(2 + (share - lowest) ** 2)
    assert leaf.tolist() == [share] * 3
    assert measured[0] == 1 and len(measured) <= 1 + sum(map(len, SHARES))
