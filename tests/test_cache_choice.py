"""The choice of caches: within its bits, near the best of all choices, and refused where nothing fits."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from bitwright.cache_choice import choose_caches
from bitwright.errors import InfeasibleError, UsageError
from bitwright.options import make_options
from bitwright.scheme import CacheScheme
from bitwright.sensitivity import Profile, ProfileHeader, SiteScores, StoredTensor
from bitwright.site import Site

CONTEXT = 1000
BITS = (2, 3, 4, 5, 8)


def problem(layers: int, seed: int) -> tuple[dict[str, Site], dict[str, dict[str, float]]]:
    """Caches of 2 x 64 whose losses fall by about four per bit, from a sensitivity of each site's own."""
    rng = np.random.default_rng(seed)
    sites, losses = {}, {}
    for layer in range(layers):
        for letter in "kv":
            name = f"layer.{layer}.{letter}_cache"
            sites[name] = Site(name, "k_cache" if letter == "k" else "v_cache", (2, 64))
            level = np.exp(2 * rng.standard_normal())
            losses[name] = {f"{letter}{b}row": level * 4.0**-b * np.exp(0.3 * rng.standard_normal()) for b in BITS}
            losses[name][f"{letter}16"] = 0.0
    return sites, losses


def with_runs(losses: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The same losses of schemes that keep 32 recent tokens."""
    return {n: {s + ("r32" if "row" in s else ""): x for s, x in found.items()} for n, found in losses.items()}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bits", [3.0, 4.25, 6.0])
def test_near_the_best_of_all_choices(bits: float, seed: int) -> None:
    sites, losses = problem(2, seed)
    choice = choose_caches(sites, losses, bits, CONTEXT)
    size = {n: {s: CacheScheme.parse(s).bytes_per_token(2, 64) for s in losses[n]} for n in sites}
    assert choice.bytes_per_token == sum(size[name][scheme.name] for name, scheme in choice.schemes.items())
    assert 8 * choice.bytes_per_token <= bits * 128 * len(sites)
    assert choice.loss == pytest.approx(sum(losses[n][s.name] for n, s in choice.schemes.items()))
    limit = bits * 128 * len(sites) / 8
    best = min(
        sum(losses[n][s] for n, s in zip(sites, schemes, strict=True))
        for schemes in product(*(losses[n] for n in sites))
        if sum(size[n][s] for n, s in zip(sites, schemes, strict=True)) <= limit
    )
    # Greedy leaves at most one step over: with four sites the best may use it.
    largest = max(max(losses[n].values()) for n in sites)
    assert best <= choice.loss * (1 + 1e-12) and choice.loss <= best + largest


def test_more_sensitive_caches_get_more_bits() -> None:
    sites, losses = problem(3, 1)
    losses["layer.1.k_cache"] = {name: 1000 * loss for name, loss in losses["layer.1.k_cache"].items()}
    schemes = choose_caches(sites, losses, 4.25, CONTEXT).schemes
    assert schemes["layer.1.k_cache"].bits == max(scheme.bits for scheme in schemes.values())


def test_all_bits_there_are_give_the_smallest_loss() -> None:
    sites, losses = problem(3, 2)
    assert choose_caches(sites, losses, 16, CONTEXT).loss == 0.0


def test_too_few_bits_name_what_there_is() -> None:
    sites, losses = problem(2, 3)
    with pytest.raises(InfeasibleError, match=r"the smallest profiled schemes take 2\.25"):
        choose_caches(sites, losses, 2.0, CONTEXT)


def test_tokens_that_are_kept_exact_count_among_all_that_the_context_holds() -> None:
    sites, losses = problem(2, 5)
    recent = with_runs(losses)
    loss = {}
    for context in (400, 4000, 100_000):
        choice = choose_caches(sites, recent, 5.0, context)
        whole = sum(s.bytes_at(2, 64, context) for s in choice.schemes.values())
        assert choice.bytes == whole <= 5.0 * context * 128 * len(sites) / 8
        loss[context] = choice.loss
    assert loss[400] > loss[4000] >= loss[100_000] >= choose_caches(sites, losses, 5.0, 100_000).loss


def test_a_profile_chooses_and_the_plan_holds_it(tmp_path: Path) -> None:
    sites, losses = problem(2, 4)
    recent = with_runs(losses)
    storage = (StoredTensor("cos", "float32", (1024, 32), positions=True),)
    header = ProfileHeader(
        "m", "m", "0" * 64, "t", "native", "generic", 8, 2, tuple(sites.values()), storage, (), (), "fisher", "nats",
        "rtn", "", "", 1,
    )  # fmt: skip
    profile = Profile.begin(tmp_path / "p", header)
    for name in sites:
        profile.put(SiteScores(name, caches=recent[name]))
    for context in (None, 512, 4096):
        options = make_options(kv="auto", kv_bits=4.75, profile=tmp_path / "p", context=context)
        assert options.caches == choose_caches(sites, recent, 4.75, context or 1024).schemes
    assert "caches chosen one by one" in options.describe()


def test_automatic_caches_need_a_profile_and_bits() -> None:
    with pytest.raises(UsageError, match="caches are chosen from a profile") as caught:
        make_options(kv="auto")
    assert "bitwright profile" in str(caught.value)
    with pytest.raises(UsageError, match=r"a cache of 4\.25 bits"):
        make_options(kv_bits=4.25)
