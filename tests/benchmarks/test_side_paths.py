"""Shares that side paths take are what they are defined as."""

from __future__ import annotations

import numpy as np

from benchmarks.side_paths import shares


def test_an_error_of_rank_one_is_taken_whole() -> None:
    rng = np.random.default_rng(0)
    error = np.outer(rng.standard_normal(40), rng.standard_normal(60))
    x = rng.standard_normal((200, 60))
    found = shares(error, x.T @ x / 200, 1, 3.5)
    assert abs(found.low_rank - 1) < 1e-9 and found.sparse < 0.5
    assert found.more == 8 * 100 / (3.5 * 2400) and found.bits == 1 - 4.0 ** -(8 * 100 / 2400)


def test_the_best_low_rank_path_is_that_of_the_weighted_error() -> None:
    rng = np.random.default_rng(1)
    error, x = rng.standard_normal((12, 16)), rng.standard_normal((100, 16)) * np.geomspace(0.1, 10, 16)
    moment = x.T @ x / 100
    root = np.linalg.cholesky(moment)
    left, spectrum, right = np.linalg.svd(error @ root, full_matrices=False)
    rest = error - (left[:, :3] * spectrum[:3]) @ right[:3] @ np.linalg.inv(root)
    before, after = (np.trace(e @ moment @ e.T) for e in (error, rest))
    assert abs(shares(error, moment, 3, 4).low_rank - (1 - after / before)) < 1e-9


def test_a_single_outlier_is_what_a_sparse_path_takes() -> None:
    error = np.full((32, 32), 0.01)
    error[3, 5] = 10.0
    assert shares(error, np.eye(32), 1, 4).sparse > 0.99
