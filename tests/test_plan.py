"""Plans are files: byte-stable, readable, and checked when they come back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bitwright.errors import InputError
from bitwright.plan import Plan, uniform_plan
from bitwright.runs import MixedScheme
from bitwright.scheme import CacheScheme, LinearScheme
from bitwright.site import Site

SITES = (
    Site("table", "table", (101, 96), "t", tied=True),
    Site("layer.0.q", "linear", (96, 96), "q"),
    Site("layer.0.k_cache", "k_cache", (1, 32)),
    Site("layer.0.v_cache", "v_cache", (1, 32)),
)


def _plan() -> Plan:
    return uniform_plan(
        SITES, LinearScheme.parse("u4g32a8"), table=LinearScheme.parse("u8g32a8"), cache_bits=16, model="m", target="t"
    )


def test_json_round_trip_is_byte_stable() -> None:
    text = _plan().to_json()
    assert Plan.from_json(text) == _plan() and Plan.from_json(text).to_json() == text


MIXED = "u4g32a8:64+c3g32a8:32"


def test_runs_of_rows_round_trip_and_fit_their_matrix() -> None:
    text = _plan().to_json().replace('"layer.0.q": "u4g32a8"', f'"layer.0.q": "{MIXED}"')
    plan = Plan.from_json(text.replace('"table": "u8g32a8"', '"table": "u8g32a8:64+u4g32a8:37"'))
    assert plan.schemes["layer.0.q"] == MixedScheme.parse(MIXED)
    assert Plan.from_json(plan.to_json()) == plan and '"u8g32a8:64+u4g32a8:37"' in plan.to_json()
    plan.check_sites(SITES)


@pytest.mark.parametrize(
    ("scheme", "limit"),
    [
        ("u4g32a8:64+u3g32a8:64", "the runs have 128 rows, the matrix has 96"),
        ("u4g32a8:32+u3g32a8:64", "u4g32a8:32 is no multiple of 64 rows, as every run but the last must be"),
    ],
)
def test_runs_that_do_not_fit_are_refused(scheme: str, limit: str) -> None:
    plan = replace(_plan(), schemes={**_plan().schemes, "layer.0.q": MixedScheme.parse(scheme)})
    with pytest.raises(InputError, match="does not fit a matrix of 96 x 96") as caught:
        plan.check_sites(SITES)
    assert "site layer.0.q" in str(caught.value) and limit in str(caught.value)


def test_runs_of_a_cache_are_refused() -> None:
    plan = replace(_plan(), schemes={**_plan().schemes, "layer.0.k_cache": MixedScheme.parse(MIXED)})
    with pytest.raises(InputError, match="does not fit a site of kind k_cache"):
        plan.check_sites(SITES)


def test_uniform_plan_gives_the_table_its_own_scheme() -> None:
    schemes = _plan().schemes
    assert schemes["table"] == LinearScheme.parse("u8g32a8") and schemes["layer.0.q"] == LinearScheme.parse("u4g32a8")
    assert schemes["layer.0.k_cache"] == CacheScheme("k") and schemes["layer.0.v_cache"] == CacheScheme("v")


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        _plan().schemes["table"] = LinearScheme.parse("f16")  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "unknown version"),
        ("{}", "unknown version"),
        ('{"plan_version": 2, "schemes": {}}', "unknown version"),
        ('{"plan_version": 1}', "no map of schemes"),
        ('{"plan_version": 1, "schemes": {"a": 4}}', "no map of schemes"),
        ('{"plan_version": 1, "schemes": {"a": "u7g32"}}', "u7g32"),
        ('{"plan_version": 1, "schemes": {"a": "k4"}}', "not a cache scheme"),
        ('{"plan_version": 1, "schemes": {}, "notes": []}', "notes are not a map"),
    ],
)
def test_malformed_plans_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Plan.from_json(text)


def test_an_error_names_file_and_site(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"plan_version": 1, "schemes": {"layer.0.q": "u9g32"}}')
    with pytest.raises(InputError) as caught:
        Plan.read(path)
    assert f"{path}: site layer.0.q" in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_unreadable_files_are_input_errors(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        Plan.read(path)
