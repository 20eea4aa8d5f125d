"""Latencies summed over a plan: steps and prompts between anchors, and the costs of sites."""

from __future__ import annotations

import pytest

from bitwright.autotune.costs import SiteCosts
from bitwright.autotune.latency import Entry, LatencyTable, Timing, spread
from bitwright.autotune.predict import predict_prompt, predict_step
from bitwright.autotune.products import Model, linear_workloads, prompt_workloads, working_set
from bitwright.autotune.whole import ALONE_ERROR, Whole
from bitwright.autotune.workload import Workload
from bitwright.plan import Plan, uniform_plan
from bitwright.runs import parse_weights
from bitwright.scheme import CacheScheme, LinearScheme
from bitwright.site import Site
from tests.autotune.latency_tables import DIGEST, SETS, SHAPES, anchor, law, linear, table


def llama(layers: int) -> list[Site]:
    """A model as FindSites describes it: width 576, 9 heads of 64, 3 for keys and values."""
    sites = [Site("table", "table", (49152, 576), "t", tied=True)]
    for i in range(layers):
        q, gate = f"layer.{i}.q", f"layer.{i}.mlp.0"
        sites += [
            Site(q, "linear", (576, 576), f"q{i}", group=q),
            Site(f"layer.{i}.k", "linear", (192, 576), f"k{i}", group=q),
            Site(f"layer.{i}.v", "linear", (192, 576), f"v{i}", group=q),
            Site(f"layer.{i}.o", "linear", (576, 576), f"o{i}"),
            Site(gate, "linear", (1536, 576), f"g{i}", group=gate),
            Site(f"layer.{i}.mlp.1", "linear", (1536, 576), f"u{i}", group=gate),
            Site(f"layer.{i}.mlp.2", "linear", (576, 1536), f"d{i}"),
            Site(f"layer.{i}.k_cache", "k_cache", (3, 64)),
            Site(f"layer.{i}.v_cache", "v_cache", (3, 64)),
        ]
    return sites


def plan(sites: list[Site], scheme: str = "u4g32a8") -> Plan:
    return uniform_plan(tuple(sites), LinearScheme.parse(scheme), table=None, cache_bits=16, model="m", target="t")


def test_the_spread_is_the_middle_half_over_the_median() -> None:
    assert spread([1.0]) == 0.0 and spread([2.0, 2.0, 2.0]) == 0.0
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)
    assert Timing.of([4.0, 1.0, 2.0, 3.0, 5.0]) == Timing(3.0, pytest.approx(2 / 3))


def test_a_plan_becomes_the_products_that_a_step_runs() -> None:
    sites = llama(2)
    work = linear_workloads(sites, plan(sites), 1, 2, "avx2")
    layer = [((960, 576), "u4g32a8"), ((576, 576), "u4g32a8"), ((3072, 576), "u4g32a8"), ((576, 1536), "u4g32a8")]
    assert [(w.shape, w.scheme) for w in work] == [*layer, *layer, ((49152, 576), "u4g32a8")]


def test_the_end_of_a_model_computes_one_token_of_a_chunk() -> None:
    sites = llama(2)
    work = prompt_workloads(sites, plan(sites), 64, 2, "avx2")
    layer = [(960, 576), (576, 576), (3072, 576), (576, 1536)]
    assert [w.shape for w in work if w.m == 64] == [*layer, layer[0]]
    assert [w.shape for w in work if w.m == 1] == [*layer[1:], (49152, 576)]


def test_members_with_other_schemes_are_runs_of_one_product() -> None:
    sites = llama(1)
    schemes = {
        **plan(sites).schemes,
        "layer.0.v": LinearScheme.parse("u6g32a8"),
        "layer.0.o": parse_weights("u4g32a8:384+u3g32a8:192"),
    }
    mixed = Plan(schemes, "m", "t", {})
    found = {(w.shape, w.scheme) for w in linear_workloads(sites, mixed, 1, 2, "avx2")}
    assert {
        ((960, 576), "u4g32a8:768+u6g32a8:192"),
        ((576, 576), "u4g32a8:384+u3g32a8:192"),
        ((3072, 576), "u4g32a8"),
    } < found
    saved = 192 * 576 // 8  # a bit of 192 rows; the wider v takes two bits more
    assert working_set(sites, mixed, 1) == working_set(sites, plan(sites), 1) - saved + 2 * saved
    # 1 layer of (960 + 576 + 3072) * 576 + 576 * 1536 weights and the table, 4.5 bits each; 2 * 33 * 192 * 2 bytes.
    expected = (4608 * 576 + 576 * 1536 + 49152 * 576) * 9 // 16 + 2 * 33 * 192 * 2
    assert working_set(sites, plan(sites), 33) == expected


def anchored(scale: float = 1.0) -> tuple[LatencyTable, Model]:
    """A table of two widths and a model whose products took ``scale`` times what they were measured as."""
    made, model = table(("u4g32a8", "u8g32a8")), Model(tuple(llama(2)), DIGEST)
    for m in (64, 256):
        for shape in SHAPES[:4]:
            for scheme in ("u4g32a8", "u8g32a8"):
                made.add(Entry(linear(shape, scheme, m), SETS[1], law(linear(shape, scheme, m), 0)))
    chosen = plan(list(model.sites))
    size = working_set(model.sites, chosen, 1)
    step = linear_workloads(model.sites, chosen, 1, 2, "avx2")
    chunk = prompt_workloads(model.sites, chosen, 256, 2, "avx2")
    made.add_anchors(
        [
            anchor(1, 0, linear=scale * sum(1e-3 * made.look_up(w, size).milliseconds for w in step)),
            anchor(1, 100, linear=1.0),
            anchor(64, 0, linear=1.0),
            anchor(256, 0, linear=scale * sum(1e-3 * made.look_up(w, size).milliseconds for w in chunk)),
        ]
    )
    return made, model


def test_a_step_is_its_products_scaled_to_a_whole_and_the_rest() -> None:
    made, model = anchored(scale=1.25)
    same = predict_step(made, model, plan(list(model.sites)), 51, 2)
    assert same.rest == pytest.approx(1e3 * (1e-4 + 50e-6)) and same.attention == 0
    wide = plan(list(model.sites), "u8g32a8")
    size = working_set(model.sites, wide, 51)
    products = linear_workloads(model.sites, wide, 1, 2, "avx2")
    found = predict_step(made, model, wide, 51)
    assert found.linear == pytest.approx(1.25 * sum(made.look_up(w, size).milliseconds for w in products))
    assert found.milliseconds == pytest.approx(found.linear + found.rest)
    assert found.predicted == 2  # 960 x 576 and 3072 x 576
    # One anchor says nothing about other widths than its own.
    assert found.relative_error == pytest.approx(ALONE_ERROR * found.linear / found.milliseconds, rel=0.05)
    assert same.relative_error < 1e-2


def test_between_anchors_a_whole_is_interpolated_by_its_bytes() -> None:
    made, model = anchored()
    narrow, wide = (plan(list(model.sites), scheme) for scheme in ("u4g32a8", "u8g32a8"))
    small, large = (working_set(model.sites, chosen, 1) for chosen in (narrow, wide))
    products = [linear_workloads(model.sites, chosen, 1, 2, "avx2") for chosen in (narrow, wide)]
    alone = [
        sum(1e-3 * made.look_up(w, s).milliseconds for w in work)
        for s, work in zip((small, large), products, strict=True)
    ]
    made.add_anchors(
        [anchor(linear=0.8 * alone[0], rest=1e-4), anchor(scheme="u8g32a8", linear=1.2 * alone[1], rest=3e-4)]
    )
    whole = Whole.of(made, model, 2)
    assert whole.scale(1, small) == pytest.approx(0.8) and whole.scale(1, large) == pytest.approx(1.2)
    assert whole.scale(1, (small + large) // 2) == pytest.approx(1.0, rel=1e-3)
    assert whole.scale(1, large * 2) == pytest.approx(1.2) and whole.rest(1, 0, (small + large) // 2) == pytest.approx(
        0.2
    )
    assert whole.error(1, large) == 0 and whole.error(1, (small + large) // 2) == pytest.approx(0.25)


def test_the_error_between_anchors_is_that_of_leaving_one_out() -> None:
    made, model = anchored()
    sizes, found = {}, []
    for scheme, scale in (("u4g32a8", 0.8), ("u6g32a8", 0.9), ("u8g32a8", 1.2)):
        chosen = plan(list(model.sites), scheme)
        for shape in ((960, 576), (576, 576), (3072, 576), (576, 1536), (49152, 576)):
            for size in SETS:
                made.add(Entry(linear(shape, scheme), size, law(linear(shape, scheme), size), 0.01))
        sizes[scheme] = working_set(model.sites, chosen, 1)
        work = linear_workloads(model.sites, chosen, 1, 2, "avx2")
        alone = sum(1e-3 * made.look_up(w, sizes[scheme]).milliseconds for w in work)
        found.append(anchor(scheme=scheme, linear=scale * alone, spread=0.02))
    made.add_anchors(found)
    whole = Whole.of(made, model, 2)
    assert whole.error(1, sizes["u6g32a8"]) == 0.02
    assert whole.error(1, (sizes["u4g32a8"] + sizes["u6g32a8"]) // 2) == pytest.approx(1.0 / 0.9 - 1)


def test_a_prompt_is_its_chunks() -> None:
    made, model = anchored(scale=0.9)
    chosen = plan(list(model.sites))
    found = predict_prompt(made, model, chosen, 600, 256)
    sizes = (256, 256, 88)
    products = [w for m in sizes for w in prompt_workloads(model.sites, chosen, m, 2, "avx2")]
    size = working_set(model.sites, chosen, 1)
    assert found.linear == pytest.approx(0.9 * sum(made.look_up(w, size).milliseconds for w in products))
    assert found.rest == pytest.approx(1e3 * sum(1e-4 * m for m in sizes))


def test_costs_of_sites_add_up_to_the_prediction() -> None:
    made, model = anchored(scale=1.25)
    wide = plan(list(model.sites), "u8g32a8")
    costs = SiteCosts(made, model, context=51, chunk=256, working_set=working_set(model.sites, wide, 51))
    added = sum(costs.decode(site, wide.schemes[site.name]) for site in model.sites)
    whole = predict_step(made, model, wide, 51).milliseconds
    assert added + costs.decode_fixed == pytest.approx(whole, rel=0.02)
    prompt = sum(costs.prefill(site, wide.schemes[site.name]) for site in model.sites)
    whole = predict_prompt(made, model, wide, 256, 256).milliseconds
    assert prompt + costs.prefill_fixed == pytest.approx(whole, rel=0.02)


def test_costs_of_caches_are_halves_beside_the_anchors() -> None:
    made, model = anchored()
    for names, each in (("k16v16", 16e-9), ("k4g32v4g32", 5e-9)):
        for context in (256, 2048):
            work = Workload("attention", (9, 3, 64, context), names, 1, 2, "avx2")
            made.add(Entry(work, SETS[1], each * context))
    costs = SiteCosts(made, model, context=1000)
    keys = next(site for site in model.sites if site.kind == "k_cache")
    assert costs.decode(keys, CacheScheme("k", 16)) == 0
    assert costs.decode(keys, CacheScheme("k", 4, 32)) == pytest.approx((5 - 16) * 1e-3 / 2)
    mixed = {s.name: CacheScheme("k", 4, 32) for s in model.sites if s.kind == "k_cache"}
    chosen = Plan({**plan(list(model.sites)).schemes, **mixed}, "m", "t", {})
    assert predict_step(made, model, chosen, 1000).attention == pytest.approx(2 * (5 - 16) * 1e-3 / 2)
