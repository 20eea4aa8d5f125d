"""``bitwright plan``: what its verbs print, as JSON too, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.small_profile import plan_of, write_profile


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    before, after = tmp_path / "a.json", tmp_path / "b.json"
    before.write_text(plan_of().to_json())
    after.write_text(plan_of(layer_0_q="u5g32a8", layer_1_q="u5g32a8").to_json())
    write_profile(tmp_path / "profile")
    return before, after, tmp_path / "profile"


def test_the_group_lists_its_verbs(command: Any) -> None:
    shown = command("plan", "--help").stdout.decode()
    assert all(f"\n  {verb} " in shown for verb in ("diff", "explain", "draw"))
    assert command("plan", "sing").returncode == 2


def test_diff(command: Any, files: tuple[Path, Path, Path]) -> None:
    before, after, profile = files
    done = command("plan", "diff", before, after)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().splitlines()[1].split() == ["q", "of", "layers", "0-1", "u4g32a8", "u5g32a8"]
    assert "2 sites differ, 7 are the same" in done.stderr.decode()
    priced = command("plan", "diff", before, after, "--profile", profile).stdout.decode().splitlines()
    assert "+2048" in priced[1] and priced[-1].startswith("all sites")
    document = json.loads(command("plan", "diff", before, after, "--profile", profile, "--json").stdout)
    assert document["changes"][0]["change"]["bytes"] == 2048 and document["same"] == 7
    same = command("plan", "diff", before, before)
    assert same.stdout == b"" and "all 9 sites have the same schemes" in same.stderr.decode()


def test_explain(command: Any, files: tuple[Path, Path, Path]) -> None:
    before, _, profile = files
    done = command("plan", "explain", before, "--profile", profile)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.decode().splitlines()) == 10
    assert "read off the plan, which states none" in done.stderr.decode()
    one = command("plan", "explain", before, "--profile", profile, "--site", "layer.0.q")
    assert len(one.stdout.decode().splitlines()) == 7
    assert "next up: " in one.stderr.decode() and "per byte" in one.stderr.decode()
    document = json.loads(
        command("plan", "explain", before, "--profile", profile, "--site", "layer.0.q", "--json").stdout
    )
    (site,) = document["sites"]
    assert site["up"]["nats_per_byte"] > 0 and site["scheme"] == "u4g32a8" and document["price"]["stated"] is False


def test_explain_without_a_profile_shows_what_the_plan_says(command: Any, files: tuple[Path, Path, Path]) -> None:
    done = command("plan", "explain", files[0])
    assert done.returncode == 0
    assert done.stdout.decode().splitlines()[1].split() == ["table", "u4g32a8", "4.50"]
    assert "pass --profile DIR" in done.stderr.decode()


def test_draw_names_its_files(command: Any, files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    done = command("plan", "draw", files[0], "--profile", files[2], "-o", tmp_path / "p.svg")
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().split() == [str(tmp_path / "p.svg"), str(tmp_path / "p-front.svg")]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["explain", "nowhere.json"], 3, "the plan cannot be read"),
        (["explain", "{plan}", "--site", "layer.9.q"], 2, "the plan has no site layer.9.q"),
        (["explain", "{plan}", "--profile", "{folder}"], 3, "there is no profile here"),
        (["explain", "{plan}", "--latencies", "{plan}"], 2, "latencies need sites"),
        (["explain", "{plan}", "--profile", "{profile}", "--latencies", "{plan}"], 3, "the latency table"),
        (["draw", "{plan}", "-o", "p.txt"], 2, "'p.txt' is no name of a picture"),
        (["explain", "{foreign}", "--profile", "{profile}"], 3, "the profile is of another model than the plan"),
    ],
)
def test_what_makes_no_sense_is_refused(
    command: Any, files: tuple[Path, Path, Path], tmp_path: Path, arguments: list[str], code: int, text: str
) -> None:
    foreign = tmp_path / "foreign.json"
    foreign.write_text(plan_of().to_json().replace("m" * 64, "f" * 64))
    names = {"plan": files[0], "folder": tmp_path, "foreign": foreign, "profile": files[2]}
    done = command("plan", *(argument.format(**names) for argument in arguments))
    assert done.returncode == code and text in done.stderr.decode()
    assert done.stdout == b"" and "Traceback" not in done.stderr.decode()
