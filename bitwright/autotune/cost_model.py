"""Search by a cost model: gradient-boosted trees (XGBoost) that learn from every record how good a candidate is.

The model predicts log(time / default's time in the same run), which needs no common unit between shapes and from
which the drift of a shared machine has cancelled. It is trained again before every batch, on the records of all
workloads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright.autotune.features import columns, features, matrix
from bitwright.autotune.records import Record
from bitwright.autotune.space import Key, Knobs, Space, key_of
from bitwright.autotune.strategy import ENUMERATED, draw, generator, tried_keys
from bitwright.autotune.workload import Workload
from bitwright.errors import UnsupportedError

LEAST_RECORDS = 6
"""With fewer measured candidates there is nothing to learn from."""

FAILED = math.log(2.0)
"""What a failed candidate counts as at least: twice the default's time."""

PARAMETERS: dict[str, Any] = {
    "objective": "reg:squarederror",
    "max_depth": 6,
    "eta": 0.15,
    "min_child_weight": 1,
    "subsample": 0.85,
    "colsample_bytree": 0.9,
    "nthread": 1,
    "tree_method": "exact",
    "verbosity": 0,
}
ROUNDS = 120
MEMBERS = 3
"""Models of an ensemble, trained on different random parts; where they disagree there is something to find out."""


@dataclass(frozen=True)
class XGBoostSearch:
    """The candidates that the model thinks fastest, and a share of random ones.

    Attributes:
        seed: of the model and of the random candidates.
        epsilon: share of random candidates in a batch.
        optimism: standard deviations of the ensemble that a candidate's prediction is lowered by.
    """

    seed: int = 0
    epsilon: float = 0.25
    optimism: float = 0.5
    name: str = "xgboost"

    def propose(self, workload: Workload, space: Space, records: Sequence[Record], count: int) -> list[Knobs]:
        tried = tried_keys(workload, records)
        random = generator(self.seed, workload, len(tried))
        names = {name for name, _ in space.knobs}
        known = [r for r in records if r.workload.op == workload.op and set(r.knobs) == names]
        if sum(r.ratio is not None for r in known) < LEAST_RECORDS:
            return draw(space, tried, count, random)
        pool = self._pool(workload, space, records, tried, random)
        predicted = CostModel(known, self.seed).score(workload, pool, self.optimism)
        ranked = [pool[i] for i in np.argsort(predicted, kind="stable")]
        explored = int(random.binomial(count, self.epsilon))
        chosen = ranked[: count - explored]
        taken = tried | {key_of(knobs) for knobs in chosen}
        return [*chosen, *draw(space, taken, explored, random)]

    def _pool(
        self,
        workload: Workload,
        space: Space,
        records: Sequence[Record],
        tried: set[Key],
        random: np.random.Generator,
    ) -> list[Knobs]:
        """The candidates to choose from: all, or for a large space many random ones and what is near the best."""
        if len(space) <= ENUMERATED:
            return [knobs for knobs in space if key_of(knobs) not in tried]
        found = draw(space, tried, ENUMERATED // 64, random)
        best = sorted((r.ratio, key_of(r.knobs)) for r in records if r.workload == workload and r.ratio is not None)
        seen = tried | {key_of(knobs) for knobs in found}
        for _, key in best[:8]:
            for knobs in space.neighbours(dict(key)):
                if key_of(knobs) not in seen:
                    seen.add(key_of(knobs))
                    found.append(knobs)
        return found


class CostModel:
    """An ensemble trained on records.

    Raises:
        UnsupportedError: xgboost is not installed.
    """

    def __init__(self, records: Sequence[Record], seed: int) -> None:
        try:
            import xgboost
        except ImportError as error:
            raise UnsupportedError(
                "the strategy xgboost needs the package xgboost",
                remedy="pip install 'bitwright[tune]', or use --strategy random",
            ) from error
        self._xgboost = xgboost
        rows = [features(record.workload, record.knobs) for record in records]
        self._names = columns(rows)
        labels = [None if record.ratio is None else math.log(record.ratio) for record in records]
        worst = max((label for label in labels if label is not None), default=0.0)
        y = np.array([max(worst, FAILED) if label is None else label for label in labels], np.float32)
        data = xgboost.DMatrix(matrix(rows, self._names), label=y)
        self._members = [
            xgboost.train({**PARAMETERS, "seed": seed * MEMBERS + member}, data, num_boost_round=ROUNDS)
            for member in range(MEMBERS)
        ]

    def predict(self, workload: Workload, candidates: Sequence[Knobs]) -> npt.NDArray[np.float32]:
        """f32 [members, candidates]: log(time / default's time)."""
        data = self._xgboost.DMatrix(matrix([features(workload, knobs) for knobs in candidates], self._names))
        return np.array([member.predict(data) for member in self._members], np.float32)

    def score(self, workload: Workload, candidates: Sequence[Knobs], optimism: float) -> npt.NDArray[np.float32]:
        """f32 [candidates]: the mean prediction, lowered where the members disagree."""
        predicted = self.predict(workload, candidates)
        scores: npt.NDArray[np.float32] = predicted.mean(axis=0) - np.float32(optimism) * predicted.std(axis=0)
        return scores
