"""How many runs a site may have."""

from __future__ import annotations

import numpy as np

from bitwright.passes.allocate.choices import TABLE_FACTOR, SiteChoices, problem_of
from bitwright.scheme import LinearScheme
from bitwright.site import Site


def choices(name: str, kind: str) -> SiteChoices:
    schemes = tuple(LinearScheme.parse(text) for text in ("u3g32a8", "u4g32a8"))
    site = Site(name, kind, (256, 64), name)  # type: ignore[arg-type]
    return SiteChoices(site, schemes, np.ones((4, 4, 2)), np.zeros((4, 2)))


def test_a_table_may_have_more_runs_than_a_matrix_of_its_shape() -> None:
    sites = [choices("table", "table"), choices("layer.0.q", "linear"), choices("layer.1.q", "linear")]
    blocks = problem_of(sites, np.zeros(4), 3).blocks
    assert [(block.sites, block.max_runs) for block in blocks] == [((0,), 3 * TABLE_FACTOR), ((1, 2), 3)]


def test_what_may_not_be_cut_is_not() -> None:
    (block,) = problem_of([choices("table", "table"), choices("layer.0.q", "linear")], np.zeros(4), 1).blocks
    assert block.sites == (0, 1) and block.max_runs == 1
