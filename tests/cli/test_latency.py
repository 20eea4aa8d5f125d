"""``bitwright latency`` on a table that is there already: what it prints, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bitwright.autotune.anchor import Anchor
from bitwright.autotune.latency import Entry, LatencyTable
from bitwright.autotune.latency_file import write_table
from bitwright.autotune.products import Model
from bitwright.codegen.isa import select_isa
from bitwright.site import Site
from bitwright.target import Target
from bitwright.timing.latencies import Request, workloads

DIGEST = "ab" * 32
SITES = (
    Site("table", "table", (512, 64), "t", tied=True),
    Site("layer.0.q", "linear", (64, 64), "q", group="layer.0.q"),
    Site("layer.0.k", "linear", (64, 64), "k", group="layer.0.q"),
    Site("layer.0.o", "linear", (64, 64), "o"),
    Site("layer.0.k_cache", "k_cache", (2, 32)),
    Site("layer.0.v_cache", "v_cache", (2, 32)),
)


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A table in which every kernel takes a microsecond, and a model that it is about."""
    from bitwright import pipeline
    from bitwright.timing import latency_report

    target = Target.parse("native")
    isa = select_isa(target.features)
    model = Model(SITES, DIGEST)
    request = Request(schemes=("u4g64a8",), threads=(1,))
    table = LatencyTable(target.fingerprint, isa.name, 1)
    for work in workloads(model, request, (1,), isa):
        table.add(Entry(work, 64 << 20, 1e-6))
    for tokens, depth in ((1, 0), (64, 0), (256, 0)):
        table.add_anchors([*table.anchors, Anchor(DIGEST, "u4g32a8", "k16v16", tokens, depth, 1, 3e-6, tokens * 1e-5)])
    write_table(table, tmp_path / "table.json")
    monkeypatch.setattr(pipeline, "load_model", lambda name, tell: None)
    monkeypatch.setattr(latency_report, "model_of", lambda imported, tell: model)
    return tmp_path / "table.json"


def test_kernels_steps_and_prompts_stand_in_one_table(command: Any, file: Path) -> None:
    done = command("latency", "m", "-o", file, "--no-measure", "-t", "1", "--schemes", "u4g64a8", "-p", "256")
    assert done.returncode == 0, done.stderr
    title, header, first, second, errors = done.stdout.decode().splitlines()
    assert title.startswith("threads 1")
    assert header.split() == ["scheme", "128x64", "64x64", "512x64", "step", "at", "1", "prompt", "of", "256"]
    # Three products of a microsecond, which took three in the whole, and ten microseconds for the rest of each token.
    assert first.split() == ["u4g32a8", "1.0", "1.0", "1.0", "0.013", "±0", "%", "2.563", "±0", "%"]
    assert second.split()[0] == "u4g64a8"
    assert "decoding, other shapes" in errors


def test_json_predicts_a_plan(command: Any, file: Path, tmp_path: Path) -> None:
    from bitwright.plan import uniform_plan
    from bitwright.scheme import LinearScheme

    plan = uniform_plan(SITES, LinearScheme.parse("u4g32a8"), table=None, cache_bits=16, model=DIGEST, target="")
    (tmp_path / "plan.json").write_text(plan.to_json())
    arguments = ("latency", "m", "-o", file, "--no-measure", "-t", "1", "--schemes", "u4g64a8")
    document = json.loads(command(*arguments, "--plan", tmp_path / "plan.json", "--json").stdout)
    (one,) = document["plan"]
    assert one["threads"] == 1 and one["step"]["milliseconds"] == pytest.approx(0.013)
    assert [row["scheme"] for row in document["rows"]] == ["u4g32a8", "u4g64a8"]
    assert document["shapes"] == [[128, 64], [64, 64], [512, 64]] and len(document["digest"]) == 64


def test_what_a_plan_is_made_of_is_measured_as_well(
    command: Any, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitwright.plan import uniform_plan
    from bitwright.runs import parse_weights
    from bitwright.scheme import CacheScheme, LinearScheme
    from bitwright.timing import latency_report

    asked: list[Request] = []

    def measured(imported: object, model: Model, request: Request, tell: object) -> LatencyTable:
        asked.append(request)
        return latency_report.table_of(request)[0]

    monkeypatch.setattr(latency_report, "measure_latencies", measured)
    plan = uniform_plan(SITES, LinearScheme.parse("u4g64a8"), table=None, cache_bits=16, model=DIGEST, target="")
    runs, cache = parse_weights("u4g64a8:256+u4g32a8:256"), CacheScheme.parse("k8g32")
    plan = replace(plan, schemes={**plan.schemes, "table": runs, "layer.0.k_cache": cache})
    (tmp_path / "plan.json").write_text(plan.to_json())
    done = command("latency", "m", "-o", file, "-t", "1", "--caches", "k16v16", "--plan", tmp_path / "plan.json")
    assert asked, done.stderr
    (request,) = asked
    assert request.schemes[-2:] == ("u4g64a8", "u4g32a8") and request.caches == ("k16v16", "k8g32v16")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--schemes", "u4"], "'u4' is not a scheme"),
        (["--caches", "k4g32"], "is not a cache scheme"),
        (["--context", "0"], "a context of 0"),
        (["-t", "0"], "0 threads"),
        (["--target", "z80"], "'z80' is not a target"),
    ],
)
def test_senseless_options_are_usage_errors(command: Any, arguments: list[str], text: str) -> None:
    done = command("latency", "m", "--no-measure", *arguments)
    assert done.returncode == 2 and text in done.stderr.decode()


def test_what_was_never_measured_is_unsupported(command: Any, file: Path, tmp_path: Path) -> None:
    done = command("latency", "m", "-o", tmp_path / "none.json", "--no-measure")
    assert done.returncode == 5 and "no latency is known" in done.stderr.decode()
