"""Cells of a study: one per strategy, budget and target, from profiles that were given or are made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bitwright.budgets.profile_options import ProfileOptions
from bitwright.errors import InputError
from bitwright.sensitivity import Profile
from bitwright.study.registered import chosen
from bitwright.study.request import StudyRequest
from bitwright.study.solve import Desk
from tests.additive_latencies import AdditiveLatencies
from tests.small_profile import write_profile

BUDGETS = (1000, 34_000)


def desk(folder: Path, **changes: Any) -> Desk:
    request = StudyRequest("somewhere", BUDGETS, stages=("speed",))
    return Desk(replace(request, **changes), folder, lambda _: None)


def test_every_strategy_answers_every_budget(tmp_path: Path) -> None:
    write_profile(tmp_path / "p")
    strategies = chosen(["uniform", "tile"])
    cells = list(desk(tmp_path / "r", profiles=(tmp_path / "p",)).cells(strategies))
    assert [(c.strategy.name, c.max_bytes, c.plan is None) for c in cells] == [
        ("uniform", 1000, True),
        ("tile", 1000, True),
        ("uniform", 34_000, False),
        ("tile", 34_000, False),
    ]
    files = sorted(path.name for path in (tmp_path / "r" / "plans").iterdir())
    assert files == ["tile@34000-native.json", "uniform@34000-native.json"]
    before = [(tmp_path / "r" / "plans" / name).read_bytes() for name in files]
    list(desk(tmp_path / "r", profiles=(tmp_path / "p",)).cells(strategies))
    assert [(tmp_path / "r" / "plans" / name).read_bytes() for name in files] == before


def test_plans_that_differ_between_targets_are_measured_on_each_other(tmp_path: Path) -> None:
    class Prefers(AdditiveLatencies):
        """Milliseconds of a machine that is slow at one width."""

        def __init__(self, slow: str) -> None:
            self.slow = slow

        def decode(self, _: object, scheme: object) -> float:
            return 5.0 if str(scheme).startswith(self.slow) else 1.0

    class Timed(Desk):
        def latencies(self, header: Any) -> Any:
            return Prefers("u3" if header.target_name == "avx2" else "u4")

    write_profile(tmp_path / "p")
    request = desk(tmp_path, budgets=(30_000,), targets=("avx512vnni", "avx2"), profiles=(tmp_path / "p",)).request
    cells = list(Timed(request, tmp_path / "r", lambda _: None).cells(chosen(["uniform", "fastest"])))
    places = [(c.strategy.name, c.solved_for, c.target) for c in cells]
    assert places[:2] == [("uniform", "avx512vnni", "avx512vnni"), ("uniform", "avx2", "avx2")]
    assert ("fastest", "avx512vnni", "avx2") in places and ("fastest", "avx2", "avx512vnni") in places
    # Both targets have the same best uniform plan: there is nothing to exchange.
    assert len(places) == 6
    fingerprints = {cell.plan.target for cell in cells if cell.plan is not None}
    assert len(fingerprints) == 2


def test_a_missing_profile_is_made_with_the_studys_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitwright.budgets import profiling

    asked = []

    def make(model: str, folder: Path, options: ProfileOptions, **_: Any) -> Profile:
        asked.append((model, folder, options))
        return write_profile(folder)

    monkeypatch.setattr(profiling, "profile_model", make)
    found = desk(tmp_path / "r")
    assert found.profile("output_mse") is found.profile("output_mse")
    ((model, folder, options),) = asked
    assert (model, folder) == ("somewhere", tmp_path / "r" / "profiles" / "output_mse")
    assert options.metric == "output_mse" and options.quantizer == "auto" and options.target == "native"


def test_the_profiles_quantizer_is_the_studys_unless_another_is_asked_for(tmp_path: Path) -> None:
    profile = write_profile(tmp_path / "p")
    (tmp_path / "p" / "codes").mkdir()
    own, other = (
        desk(tmp_path, profiles=(tmp_path / "p",)),
        desk(tmp_path, profiles=(tmp_path / "p",), quantizer="gptq"),
    )
    assert own.quantizer == "rtn" and own.codes(profile) == tmp_path / "p" / "codes"
    assert other.quantizer == "gptq" and other.codes(profile) is None


def test_profiles_of_two_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_profile(tmp_path / "p")
    found = desk(tmp_path, profiles=(tmp_path / "p",))
    other = write_profile(tmp_path / "q", digest="n" * 64)
    monkeypatch.setattr(found, "_made", lambda _: other)
    with pytest.raises(InputError, match="the profiles are of different models"):
        found.digest(chosen(["greedy-fisher", "greedy-output-mse"]))
