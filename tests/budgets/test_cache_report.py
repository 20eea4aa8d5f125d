"""What caches cost, scheme by scheme: sums and places follow from the scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitwright import pipeline
from bitwright.budgets.cache_report import cache_costs
from bitwright.budgets.profile_options import ProfileOptions
from bitwright.budgets.profiling import profile_model
from bitwright.budgets.storage import weights_file_bytes
from bitwright.cachemaps import mapped_cache
from bitwright.errors import UsageError
from bitwright.options import Options
from bitwright.plan import Plan
from bitwright.plans.costs import Costs
from bitwright.runs import Scheme
from bitwright.runtime.artifact import files
from bitwright.runtime.artifact.tensormap import map_tensors
from bitwright.scheme import CacheScheme, LinearScheme
from tests.canonical_model import Shape, decoder
from tests.small_profile import scores, write_profile


def test_costs_are_sums_over_layers(tmp_path: Path) -> None:
    profile = write_profile(tmp_path)
    found = {cost.scheme: cost for cost in cache_costs(profile)}
    assert list(found) == ["k4g32", "k8g32", "v4g32", "v8g32"]
    assert found["k4g32"].bits == 4 + 16 / 32
    expected = [scores(site).caches["v8g32"] for site in profile.header.sites if site.kind == "v_cache"]
    assert found["v8g32"].total == pytest.approx(sum(expected))
    assert found["v8g32"].losses[found["v8g32"].worst] == max(expected)


def test_a_profile_of_caches_alone_scores_mapped_ones(tmp_path: Path) -> None:
    model = decoder(Shape(context=96))
    options = ProfileOptions(schemes=("k4rowm", "v4rowm", "k4row", "v2rowm", "v4row"), quantizer="rtn", tokens=512)
    profile = profile_model(model, tmp_path, options)
    found = {cost.scheme: cost for cost in cache_costs(profile)}
    assert 0 < found["v4rowm"].total < found["v2rowm"].total
    assert set(found["k4rowm"].losses) == {"layer.0.k_cache", "layer.1.k_cache"}
    assert (tmp_path / "cache_maps.safetensors").is_file()
    assert all(not profile.scores(site.name).weights for site in profile.header.sites if site.weight)
    # Maps count beside what the context stores: two matrices of halves of one head of 32, for keys a shift of singles.
    for site, scheme, maps in (("layer.1.k_cache", "k4rowm", 4 * 32 * 33), ("layer.0.v_cache", "v2rowm", 0)):
        stored = [Costs(profile, context).of(site, CacheScheme.parse(scheme)).uses["bytes"] for context in (None, 10)]
        assert stored == [maps, maps + CacheScheme.parse(scheme).bytes_at(1, 32, 10)]
    # What was finished is not done again, and the maps are those that were kept.
    again = profile_model(model, tmp_path, options)
    assert again.digest == profile.digest


def test_scores_of_caches_that_keep_recent_tokens_are_what_later_runs_lose(tmp_path: Path) -> None:
    model = decoder(Shape(context=96))
    totals = []
    for run in ("", "r32", "r64"):
        options = ProfileOptions(schemes=(f"k3row{run}", f"v3row{run}"), quantizer="rtn", tokens=512)
        profile = profile_model(model, tmp_path / f"p{run}", options)
        totals.append({cost.scheme[:5]: cost.total for cost in cache_costs(profile)})
    for letter in "kv":
        none, some, most = (found[f"{letter}3row"] for found in totals)
        assert 0 < most < some < none
    with pytest.raises(UsageError, match="keep 0 and 32 recent tokens"):
        ProfileOptions(schemes=("k4row", "v4rowr32"))


def test_maps_are_counted_where_caches_are_mapped(tmp_path: Path) -> None:
    """Of a plan that maps some caches, bytes are predicted exactly, and are those of the formula."""
    model = decoder(Shape(context=96))
    options = ProfileOptions(schemes=("u4g32", "k4rowm", "v4rowm"), quantizer="rtn", tokens=96)
    header = profile_model(model, tmp_path / "profile", options).header
    schemes: dict[str, Scheme] = {}
    for site in header.sites:
        schemes[site.name] = LinearScheme.parse("u4g32a8") if site.weight else CacheScheme.parse(f"{site.kind[0]}16")
    plain = weights_file_bytes(header, schemes, 64)
    mapped = {"layer.0.v_cache": CacheScheme.parse("v4rowm"), "layer.1.k_cache": CacheScheme.parse("k4rowm")}
    schemes |= mapped
    found = weights_file_bytes(header, schemes, 64)
    maps = sum(header.map_bytes(name, scheme) for name, scheme in mapped.items())
    assert maps < found - plain < maps + 1024  # names in the file's header
    plan = Plan(schemes, model.digest, header.target)
    artifact = pipeline.compile_model(model, tmp_path / "artifact", Options(plan=plan, context=64))
    assert artifact.manifest.run_bytes == found
    # Keys, of one head of 32: two matrices of halves and a shift of singles. Values are mapped by weights.
    stored = {
        name: tensor.nbytes
        for name, tensor in map_tensors(artifact.folder / files.WEIGHTS).items()
        if mapped_cache(name)
    }
    matrix = 2 * 32 * 32
    assert stored == {
        "layer.1.query_map": matrix,
        "layer.1.key_map": matrix,
        "layer.1.key_shift": 4 * 32,
    }
    assert sum(stored.values()) == maps
    step = artifact.manifest.interface.step
    assert step is not None
    assert sum(weights for kernel, weights, _ in step.tasks if kernel.startswith("head_map")) == maps
