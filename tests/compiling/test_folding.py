"""Maps of values in weights: nothing is left to do in steps, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitwright import pipeline
from bitwright.budgets.profile_options import ProfileOptions
from bitwright.budgets.profiling import profile_model
from bitwright.cachemaps import CacheMaps
from bitwright.compiling.folding import foldable, folded_values
from bitwright.frontend.interpreter import Interpreter
from bitwright.frontend.rotate import values as places
from bitwright.keymap import HeadMap, HeadStatistics, value_map
from bitwright.options import Options, parse_caches
from bitwright.plan import uniform_plan
from bitwright.runtime.artifact import files
from bitwright.runtime.artifact.tensormap import map_tensors
from bitwright.runtime.session import load
from bitwright.scheme import LinearScheme
from bitwright.target import Target
from tests.canonical_model import Shape, decoder


def a_map(heads: int, size: int) -> HeadMap:
    rng = np.random.default_rng(3)
    square, gradients = (np.einsum("hnd,hne->hde", x, x) for x in rng.standard_normal((2, heads, 4 * size, size)))
    return value_map(HeadStatistics(np.zeros((heads, size)), square, gradients))


def test_the_model_computes_what_it_did() -> None:
    model = decoder(Shape(layers=2))
    maps = CacheMaps(keys={0: a_map(1, 32)}, values={1: a_map(1, 32)})
    folded = folded_values(model, None, maps)
    assert folded.maps == CacheMaps(keys=maps.keys, folded=frozenset({1}))
    assert folded.events == {"fold_values": {"layers": 1}}
    weights = {site.name: site.weight for site in pipeline.sites_of(model, Options(), lambda _: None).sites}
    assert folded.weights == {weights["layer.1.v"], weights["layer.1.o"]}
    ids = np.random.default_rng(1).integers(0, model.vocab, 20)
    before, after = (Interpreter(m.graph).logits(ids) for m in (model, folded.model))
    assert not np.array_equal(before, after)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-4 * np.abs(before).max())


def test_without_maps_of_values_nothing_is_done() -> None:
    model = decoder()
    maps = CacheMaps(keys={0: a_map(1, 32)})
    folded = folded_values(model, None, maps)
    assert folded.model is model
    assert folded.maps is maps
    assert not folded.events


def test_steps_do_not_map_values(tmp_path: Path) -> None:
    artifact = pipeline.compile(decoder(), tmp_path / "a", context=64, scheme="u8g32a8", kv="v=v4rowm")
    step = artifact.manifest.interface.step
    assert step is not None
    assert not [kernel for kernel, *_ in step.tasks if kernel.startswith("head_map")]
    assert not [name for name in map_tensors(artifact.folder / files.WEIGHTS) if "map" in name]


def test_where_weights_cannot_map_steps_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = decoder(), np.arange(3, 40)
    scheme: dict[str, Any] = {"context": 64, "scheme": "f32", "kv": "v=v8rowm"}
    folded = load(pipeline.compile(model, tmp_path / "a", **scheme).folder).logits(ids)
    monkeypatch.setattr(places, "value_places", lambda _: ())
    assert not foldable(model)
    artifact = pipeline.compile(model, tmp_path / "b", **scheme)
    assert "layer.0.value_map" in map_tensors(artifact.folder / files.WEIGHTS)
    # Of 8 bits both are close to the float model.
    mapped = load(artifact.folder).logits(ids)
    assert np.sqrt(np.mean((mapped - folded) ** 2)) < 0.01 * folded.std()


def test_codes_that_a_profile_kept_are_not_used_for_weights_that_map(tmp_path: Path) -> None:
    """The artifact is the one that quantizes all weights by itself."""
    model, folder = decoder(), tmp_path / "profile"
    wanted = ProfileOptions(schemes=("u4g32", "v4rowm"), quantizer="rtn", tokens=96, codes=folder / "codes")
    profile_model(model, folder, wanted)
    assert all((folder / "codes" / f"layer.0.{name}" / "u4g32.safetensors").exists() for name in "vo")
    target = Target.parse("native")
    options = Options(context=64, quantizer="rtn")
    program = pipeline.sites_of(model, options, lambda _: None)
    values = parse_caches("v=v4rowm")["v"]
    scheme = LinearScheme.parse("u4g32a8")
    given = {"table": scheme, "cache_bits": 16, "values": values, "target": target.fingerprint}
    plan = uniform_plan(program.sites, scheme, model=model.digest, **given)
    options = replace(options, plan=plan)
    kept = pipeline.compile_model(model, tmp_path / "a", replace(options, codes=folder / "codes"))
    fresh = pipeline.compile_model(model, tmp_path / "b", options)
    found, expected = (map_tensors(made.folder / files.WEIGHTS) for made in (kept, fresh))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)
