"""What int8 activations cost by site: sums of the profile's tiles, the worst site first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitwright.cli.activation_table import print_activations
from bitwright.plans.activations import MASSIVE, activation_losses
from bitwright.sensitivity import Profile
from tests.small_profile import ACTIVATION, IMPORTANCE, write_profile


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    found = write_profile(tmp_path / "profile")
    scores = found.scores("layer.1.q")
    coarse = {"a8row": 4 * scores.activations["a8g32"]}
    found.put(replace(scores, activations={**coarse, **scores.activations}, peak=2 * MASSIVE))
    return found


def test_sites_by_what_they_lose(profile: Profile) -> None:
    losses = activation_losses(profile)
    assert [loss.site for loss in losses] == sorted(IMPORTANCE, key=lambda name: -IMPORTANCE[name])
    assert losses[0].eight == {"a8g32": pytest.approx(8 * ACTIVATION)}
    assert losses[0].share == pytest.approx(8 / 11.75)
    # Steps are 2**7 times finer, and losses are squares of them.
    assert losses[0].sixteen == pytest.approx(8 * ACTIVATION / 2**14)


def test_finer_groups_come_first_and_massive_activations_are_flagged(profile: Profile) -> None:
    found = {loss.site: loss for loss in activation_losses(profile)}
    assert list(found["layer.1.q"].eight) == ["a8g32", "a8row"]
    assert found["layer.1.q"].finest == pytest.approx(0.5 * ACTIVATION)
    assert {name for name, loss in found.items() if loss.massive} == {"layer.1.q"}
    assert found["layer.0.q"].to_json()["peak"] is None


def test_a_table_for_people(
    profile: Profile, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitwright.cli.activation_table.SHOWN", 3)
    print_activations(activation_losses(profile))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["loses", "from", "int8", "activations", "a8g32", "a8row", "a16", "share", "peak"]
    assert lines[1].split() == ["layer.0.q", "8.00e-05", "-", "4.88e-09", "68.1%"]
    assert lines[4].split() == ["2", "others", "7.50e-06", "-", "4.58e-10", "6.4%", "1", "massive"]
    assert lines[5].split()[:2] == ["all", "1.17e-04"]


def test_a_profile_keeps_the_peak(profile: Profile) -> None:
    assert Profile.read(profile.folder).scores("layer.1.q").peak == 2 * MASSIVE
    assert profile.scores("layer.0.q").peak is None
    np.testing.assert_array_equal(
        profile.scores("layer.1.q").activations["a8row"], 4 * profile.scores("layer.1.q").activations["a8g32"]
    )
