"""From a model to a profile, from budgets to a plan, from the plan to an artifact of exactly its bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bitwright import pipeline
from bitwright.allocation import RESOURCES, Budgets
from bitwright.budgets import allocating
from bitwright.budgets.allocating import Seen, Settings, allocate, next_aim, site_choices
from bitwright.budgets.profile_options import ProfileOptions
from bitwright.budgets.profiling import profile_model
from bitwright.errors import InfeasibleError, InputError, UnsupportedError, UsageError
from bitwright.frontend.model import ImportedModel
from bitwright.options import Options
from bitwright.passes.allocate.solve import solve
from bitwright.plan import Plan
from bitwright.runs import MixedScheme, Scheme, WeightsScheme, runs_of
from bitwright.scheme import CacheScheme, LinearScheme
from bitwright.sensitivity import Profile
from bitwright.site import Site
from tests import unusual_models
from tests.canonical_model import Shape, decoder

SHAPE = Shape(layers=2, width=128, heads=4, kv_heads=2, head_dim=32, hidden=192, vocab=320)
SCHEMES = ("c2g32", "u3g32", "c4g32", "u8g64", "k4g32", "v4g32", "k8g32", "v8g32")


def options(folder: Path, jobs: int = 1) -> ProfileOptions:
    return ProfileOptions(schemes=SCHEMES, quantizer="rtn", tokens=512, jobs=jobs, codes=folder / "codes")


@pytest.fixture(scope="module")
def model() -> ImportedModel:
    """With a small table: the logits of a tied table of unit variance would leave no doubt, hence no gradients.

    Its last rows are smaller still, so that it pays to cut it into runs.
    """
    model = decoder(SHAPE)
    table = model.graph.graph.initializers["table"]
    assert table.const_value is not None
    rows = table.const_value.numpy() / 8
    rows[192:] /= 16
    table.const_value = ir.tensor(rows, name="table")
    return model


@pytest.fixture(scope="module")
def profile(model: ImportedModel, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    folder = tmp_path_factory.mktemp("profile")
    return profile_model(model, folder, options(folder))


def sizes(profile: Profile) -> tuple[float, float]:
    """Least and most bytes of the weights' file, about."""
    least, most = 0.0, 0.0
    for decisions in site_choices(profile, Budgets(max_bytes=1)).values():
        least += min(decision.uses["bytes"] for decision in decisions)
        most += max(decision.uses["bytes"] for decision in decisions)
    return least, most


def budget(profile: Profile, share: float) -> int:
    least, most = sizes(profile)
    return int(least + 40_000 + share * (most - least) / 2)


def scores_digest(folder: Path) -> str:
    state = hashlib.sha256()
    for path in sorted((folder / "scores").iterdir()):
        state.update(path.name.encode() + path.read_bytes())
    return state.hexdigest()


def test_every_site_has_scores_that_fall_with_the_width(profile: Profile) -> None:
    for site in profile.header.sites:
        scores = profile.scores(site.name)
        if site.weight:
            losses = [scores.weights[name].sum() for name in ("c2g32", "u3g32", "c4g32", "u8g64")]
            assert losses == sorted(losses, reverse=True) and losses[-1] > 0
            assert len(scores.weights["u3g32"]) == -(-site.shape[0] // 64)
            assert set(scores.activations) == {"a8g32", "a8g64"}
        else:
            letter = site.kind[0]
            assert scores.caches[f"{letter}4g32"] > scores.caches[f"{letter}8g32"] > scores.caches[f"{letter}16"] > 0


def test_a_profile_is_the_same_with_any_number_of_jobs_and_after_an_interruption(
    model: ImportedModel, profile: Profile, tmp_path: Path
) -> None:
    class StopError(Exception):
        pass

    def stop(done: int, _total: int) -> None:
        if done == 5:
            raise StopError

    with pytest.raises(StopError):
        profile_model(model, tmp_path, options(tmp_path, jobs=3), progress=stop)
    with pytest.raises(InputError, match="the profile lacks"):
        Profile.read(tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "scores").iterdir()}
    assert len(kept) == 5
    again = profile_model(model, tmp_path, options(tmp_path, jobs=3))
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    assert scores_digest(tmp_path) == scores_digest(profile.folder)
    assert again.digest == profile.digest


def test_a_table_may_have_candidates_of_its_own(model: ImportedModel, tmp_path: Path) -> None:
    wanted = replace(options(tmp_path), table_schemes=("c2row", "u3g32", "c3row"), tokens=64)
    assert [scheme.name for scheme in wanted.table_weights] == ["c2row", "c3row"]
    made = profile_model(model, tmp_path, wanted)
    assert made.header.table_weights == ("c2row", "c3row") == Profile.header_of(tmp_path).table_weights
    found = {name: set(made.scores(name).weights) for name in ("table", "layer.0.q")}
    assert found["table"] - found["layer.0.q"] == {"c2row", "c3row"}
    plan = allocate(made, Budgets(max_bytes=budget(made, 0.02))).plan
    assert "row" in str(plan.schemes["table"])
    artifact = pipeline.compile_model(model, tmp_path / "artifact", Options(plan=plan))
    assert artifact.manifest.run_bytes == allocate(made, Budgets(max_bytes=budget(made, 0.02))).bytes


def test_positions_are_scored_as_often_as_each_other_and_have_no_more_candidates(tmp_path: Path) -> None:
    model = unusual_models.learned_positions()
    wanted = ProfileOptions(schemes=("u3g32",), table_schemes=("c3row",), quantizer="rtn", tokens=256)
    made = profile_model(model, tmp_path, wanted)
    found = {site.name: made.scores(site.name).weights for site in made.header.sites if site.kind == "table"}
    assert {name: set(scores) for name, scores in found.items()} == {
        "table": {"u3g32", "c3row"},
        "table.extra": {"u3g32"},
    }
    assert (found["table.extra"]["u3g32"] > 0).all()


def test_tables_have_more_candidates_unless_schemes_are_named() -> None:
    assert [scheme.name for scheme in ProfileOptions().table_weights] == ["c2row", "c3row"]
    assert ProfileOptions(schemes=("u4g32",)).table_weights == ()


def test_a_folder_of_another_profile_is_refused(model: ImportedModel, profile: Profile) -> None:
    other = replace(options(profile.folder), metric="output_mse")
    with pytest.raises(InputError, match="the folder holds a profile of something else") as caught:
        profile_model(model, profile.folder, other)
    assert "metric" in str(caught.value.where) and "quantizer" not in str(caught.value.where)
    Profile.begin(profile.folder, profile.header)
    with pytest.raises(InputError, match="something else"):
        Profile.begin(profile.folder, replace(profile.header, isa="another"))


def test_a_profile_goes_on_with_another_number_of_cores(profile: Profile) -> None:
    moved = replace(profile.header, target="another", cores=profile.header.cores + 1)
    assert Profile.begin(profile.folder, moved).header == profile.header


@pytest.mark.parametrize("grain", ["tile", "matrix"])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_the_plans_bytes_are_the_artifacts_bytes(
    model: ImportedModel, profile: Profile, grain: str, share: float, tmp_path: Path
) -> None:
    limit = budget(profile, share)
    found = allocate(profile, Budgets(max_bytes=limit), Settings(grain=grain))  # type: ignore[arg-type]
    assert found.bytes <= limit
    assert 0 <= found.gap < 0.3
    if share != 0.2:
        return
    artifact = pipeline.compile_model(model, tmp_path / "artifact", Options(plan=found.plan))
    assert artifact.manifest.run_bytes == found.bytes
    assert artifact.manifest.interface.cache_bytes_per_token == found.kv_bytes_per_token


def test_tiles_lose_no_more_than_matrices_and_more_bytes_lose_less(profile: Profile) -> None:
    losses = {}
    for grain in ("tile", "matrix"):
        for share in (0.1, 0.3):
            found = allocate(profile, Budgets(max_bytes=budget(profile, share)), Settings(grain=grain))  # type: ignore[arg-type]
            losses[grain, share] = found.predicted["kl"]
    assert losses["tile", 0.1] <= losses["matrix", 0.1] * 1.0001
    assert losses["tile", 0.3] < losses["tile", 0.1]


def test_no_matrix_has_more_runs_than_allowed(profile: Profile) -> None:
    found = allocate(profile, Budgets(max_bytes=budget(profile, 0.2)), Settings(max_runs=2))
    mixed = [scheme for scheme in found.plan.schemes.values() if isinstance(scheme, MixedScheme)]
    assert mixed and all(len(scheme.runs) == 2 for scheme in mixed)


def test_without_a_context_caches_stay_at_16_bits_and_with_one_they_share_the_budget(profile: Profile) -> None:
    limit = budget(profile, 0.2)
    free = allocate(profile, Budgets(max_bytes=limit)).plan
    assert {str(s) for s in free.schemes.values() if isinstance(s, CacheScheme)} == {"k16", "v16"}
    counted = allocate(profile, Budgets(max_bytes=limit + 20_000, context=96))
    assert counted.bytes + 96 * counted.kv_bytes_per_token <= limit + 20_000
    assert any(scheme.bits < 16 for scheme in counted.plan.schemes.values() if isinstance(scheme, CacheScheme))


def test_a_bound_on_the_divergence_minimises_bytes(profile: Profile) -> None:
    by_bytes = allocate(profile, Budgets(max_bytes=budget(profile, 0.2)))
    bound = by_bytes.predicted["kl"]
    found = allocate(profile, Budgets(max_kld=bound))
    assert found.predicted["kl"] <= bound
    assert found.bytes <= 1.002 * by_bytes.bytes
    assert found.binding == ("kl",)


def test_what_an_integer_program_takes_beyond_its_bounds_is_taken_back(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of plans that meet all bounds but for its tolerance, a bound of least KL leaves no other to a round alike."""

    def tolerant(problem: Any, objective: int, limits: Mapping[int, float], method: Any) -> Any:
        return solve(problem, objective, {resource: limit * (1 + 1e-8) for resource, limit in limits.items()}, method)

    beyond = allocate(profile, Budgets(max_bytes=budget(profile, 0.2))).predicted["kl"]
    bound = beyond * (1 - 1e-9)
    monkeypatch.setattr(allocating, "solve", tolerant)
    assert allocate(profile, Budgets(max_kld=bound)).predicted["kl"] <= bound


def test_average_bits_are_a_budget_of_bytes(profile: Profile) -> None:
    parameters = sum(site.parameters for site in profile.header.sites)
    assert allocate(profile, Budgets(avg_bits=9)).bytes <= 9 * parameters / 8


@dataclass(frozen=True)
class Bandwidth:
    """Time follows bytes; 16-bit activations take half as long again."""

    sites: tuple[Site, ...]
    chunk: int = 256
    decode_fixed: float = 0.5
    prefill_fixed: float = 1.0

    def decode(self, site: Site, scheme: WeightsScheme | CacheScheme) -> float:
        if isinstance(scheme, CacheScheme):
            return scheme.bytes_per_token(*site.shape) / 1e4
        runs: Iterator[tuple[LinearScheme, int]] = ((run.scheme, run.rows) for run in runs_of(scheme, site.shape[0]))
        return (
            sum(s.weight.storage_bytes(n, site.shape[1]) * (1.5 if s.activation.bits == 16 else 1) for s, n in runs)
            / 1e5
        )

    def prefill(self, site: Site, scheme: WeightsScheme | CacheScheme) -> float:
        return 0.0 if isinstance(scheme, CacheScheme) else site.parameters / 1e5

    def step(self, schemes: Mapping[str, Scheme]) -> float:
        """A tenth more than it adds up to."""
        return 1.1 * (self.decode_fixed + sum(self.decode(site, schemes[site.name]) for site in self.sites))

    def prompt(self, schemes: Mapping[str, Scheme], tokens: int) -> float:
        return self.prefill_fixed * tokens / self.chunk

    def reading(self, schemes: Mapping[str, Scheme]) -> Bandwidth:
        return self


def test_a_bound_on_time_holds_and_uses_16_bits_where_they_pay(profile: Profile) -> None:
    settings = Settings(latencies=Bandwidth(profile.header.sites))
    loose = allocate(profile, Budgets(max_bytes=budget(profile, 0.3), max_decode_ms=100.0), settings)
    tight = allocate(profile, Budgets(max_bytes=budget(profile, 0.3), max_decode_ms=1.6), settings)
    assert 1.58 < tight.predicted["decode_ms"] <= 1.6 < loose.predicted["decode_ms"]
    assert "decode_ms" in tight.binding and "bytes" in loose.binding
    assert any("a16" in str(scheme) for scheme in loose.plan.schemes.values())


@dataclass(frozen=True)
class Cached(Bandwidth):
    """What a plan reads beyond a cache takes four times as long: times of wholes are no multiple of their parts'."""

    cached: float = 1.0

    def step(self, schemes: Mapping[str, Scheme]) -> float:
        added = sum(self.decode(site, schemes[site.name]) for site in self.sites)
        return self.decode_fixed + added + 3 * max(0.0, added - self.cached)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_bound_on_time_is_used_up_where_times_are_not_additive(profile: Profile, share: float) -> None:
    plain = Bandwidth(profile.header.sites)
    ends = (
        allocate(profile, Budgets(max_bytes=budget(profile, part)), Settings(latencies=plain)) for part in (0.1, 0.9)
    )
    least, most = (sum(plain.decode(site, end.plan.schemes[site.name]) for site in plain.sites) for end in ends)
    latencies = Cached(profile.header.sites, cached=(least + most) / 2)
    fastest, slowest = latencies.decode_fixed + least, latencies.decode_fixed + most + 3 * (most - least) / 2
    bound = fastest + share * (slowest - fastest)
    found = allocate(profile, Budgets(max_decode_ms=bound), Settings(latencies=latencies))
    # Tiles of so small a model are steps of 2 %.
    assert 0.97 * bound < found.predicted["decode_ms"] <= bound


class Worse(Bandwidth):
    """What it takes beside what a plan reads leaves no time for anything."""

    def reading(self, schemes: Mapping[str, Scheme]) -> Bandwidth:
        return replace(self, decode_fixed=1000.0)


def test_a_plan_that_was_found_is_kept_when_later_prices_find_none(profile: Profile) -> None:
    found = allocate(profile, Budgets(max_decode_ms=1.6), Settings(latencies=Worse(profile.header.sites)))
    assert found.predicted["decode_ms"] <= 1.6


def test_between_two_plans_the_next_aim_lies_between_them() -> None:
    decode = RESOURCES.index("decode_ms")
    assert next_aim(decode, 2.0, [Seen(2.0, 2.6)]) == pytest.approx(2.0 * 2.0 / 2.6)
    assert next_aim(RESOURCES.index("bytes"), 100.0, [Seen(90.0, 104.0)]) == 86.0
    aim = next_aim(decode, 2.0, [Seen(2.0, 2.6), Seen(1.5, 1.75), Seen(1.7, 2.3)])
    assert 1.5 < aim < 1.7 and aim == pytest.approx(1.5 + 0.2 * 0.25 / 0.55, abs=1e-3)


@dataclass(frozen=True)
class Partial(Bandwidth):
    """Codebooks were never timed."""

    def decode(self, site: Site, scheme: WeightsScheme | CacheScheme) -> float:
        if "c" in str(scheme):
            raise UnsupportedError(f"{scheme} was not measured")
        return super().decode(site, scheme)


def test_schemes_that_were_never_timed_are_no_choice_under_a_bound_on_time(profile: Profile) -> None:
    budgets = Budgets(max_bytes=budget(profile, 0.3), max_decode_ms=100.0)
    latencies = Partial(profile.header.sites)
    timed = allocate(profile, budgets, Settings(latencies=latencies))
    assert not any("c" in str(scheme) for scheme in timed.plan.schemes.values())
    free = allocate(profile, Budgets(max_bytes=budget(profile, 0.3)), Settings(latencies=latencies))
    assert any("c" in str(scheme) for scheme in free.plan.schemes.values())
    assert set(free.predicted) == {"kl"} and set(timed.predicted) == {"kl", "decode_ms", "prefill_ms"}


def test_a_bound_on_time_needs_latencies(profile: Profile) -> None:
    with pytest.raises(UsageError, match="times are bounded, but no latencies are known"):
        allocate(profile, Budgets(max_decode_ms=1.0))


def test_an_infeasible_budget_says_what_can_be_achieved(profile: Profile) -> None:
    with pytest.raises(InfeasibleError, match="no plan meets the budgets") as caught:
        allocate(profile, Budgets(max_bytes=1000))
    assert caught.value.where == "binding: bytes"
    assert "bytes from " in str(caught.value.limit) and "asked: 1000" in str(caught.value.limit)


def test_the_plan_explains_itself_and_is_the_same_every_time(profile: Profile) -> None:
    first, second = (allocate(profile, Budgets(max_bytes=budget(profile, 0.2))) for _ in range(2))
    assert first.plan.to_json() == second.plan.to_json()
    read = Plan.from_json(first.plan.to_json())
    assert read.notes["profile"] == profile.digest
    assert read.notes["bytes"] == first.bytes and read.notes["prices"]["bytes"] > 0
    assert read.notes["predicted"]["kl"] == pytest.approx(sum(d.uses["kl"] for d in first.decisions))


def test_no_budget_and_contradicting_ones_are_refused() -> None:
    with pytest.raises(UsageError, match="no budget was given"):
        Budgets()
    with pytest.raises(UsageError, match="bounded and minimised"):
        Budgets(max_kld=0.1, minimise="kl")
    with pytest.raises(UsageError, match="is not positive"):
        Budgets(max_bytes=0)
    assert np.isclose(Budgets(max_kld=0.1).limits["kl"], 0.1)
