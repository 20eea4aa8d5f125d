"""A plan that was edited by hand is validated, and compiled as it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bitwright import pipeline
from bitwright.errors import InputError, UnsupportedError
from bitwright.frontend.model import ImportedModel
from bitwright.options import Options
from bitwright.target import Target
from tests.canonical_model import Shape, decoder

SHAPE = Shape(layers=1, width=64, heads=2, kv_heads=2, head_dim=32, hidden=128, vocab=128)


@pytest.fixture
def plan_file(tmp_path: Path) -> tuple[ImportedModel, Path]:
    model = decoder(SHAPE)
    plan, _ = pipeline.plan_and_program(model, Options(context=64), Target.parse("native"), lambda _: None)
    path = tmp_path / "plan.json"
    path.write_text(replace(plan, notes={"budgets": {"max_bytes": 10**6}, "bytes": 1}).to_json())
    return model, path


def edit(path: Path, **changes: Any) -> None:
    document = json.loads(path.read_text())
    document["schemes"].update({name.replace("_", ".", 2): text for name, text in changes.items()})
    path.write_text(json.dumps(document))


def test_an_edit_is_compiled(plan_file: tuple[ImportedModel, Path], tmp_path: Path) -> None:
    model, path = plan_file
    edit(path, layer_0_q="u8g32a8", table="u6g32a8:64+u3g32a8:64")
    artifact = pipeline.compile(model, tmp_path / "a", plan=path, context=64, chunk=16)
    kept = json.loads((artifact.folder / "plan.json").read_text())["schemes"]
    assert kept["layer.0.q"] == "u8g32a8" and kept["table"] == "u6g32a8:64+u3g32a8:64"


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"layer_0_q": "u7g32a8"}, InputError, "site layer.0.q"),
        ({"layer_0_q": "k8g32"}, InputError, "scheme k8g32 does not fit a site of kind linear"),
        ({"layer_7_q": "u4g32a8"}, InputError, "names 1 that the model does not have"),
        ({"table": "u4g32a8:96+u3g32a8:32"}, InputError, "u4g32a8:96 is no multiple of 64 rows"),
        ({"table": "u4g32a8:64+u3g32a8:32"}, InputError, "the runs have 96 rows, the matrix has 128"),
        ({"layer_0_q": "u4g128a8"}, UnsupportedError, "groups of 128 do not divide 64 inputs"),
    ],
)
def test_an_edit_that_cannot_be_is_refused_by_name(
    plan_file: tuple[ImportedModel, Path], tmp_path: Path, changes: dict[str, str], error: type[Exception], text: str
) -> None:
    model, path = plan_file
    edit(path, **changes)
    with pytest.raises(error) as caught:
        pipeline.compile(model, tmp_path / "a", plan=path, context=64, chunk=16)
    assert text in str(caught.value)
    assert not (tmp_path / "a").exists()
