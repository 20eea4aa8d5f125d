"""Latency tables: measured, predicted with the error that is stated, stored, summed over a plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitwright.autotune.anchor import Anchor, Anchors
from bitwright.autotune.costs import SiteCosts
from bitwright.autotune.interpolation import between
from bitwright.autotune.latency import Entry, LatencyTable, Timing, missing, spread
from bitwright.autotune.latency_file import digest, open_table, read_table, write_table
from bitwright.autotune.predict import predict_prompt, predict_step
from bitwright.autotune.products import Model, linear_workloads, prompt_workloads, working_set
from bitwright.autotune.whole import ALONE_ERROR, Whole
from bitwright.autotune.workload import Workload
from bitwright.errors import InputError, UnsupportedError
from bitwright.plan import Plan, uniform_plan
from bitwright.runs import parse_weights
from bitwright.scheme import CacheScheme, LinearScheme
from bitwright.site import Site

SETS = (64 << 20, 128 << 20)
SHAPES = ((192, 576), (576, 576), (1536, 576), (576, 1536), (3072, 1024), (49152, 576))
CALL, ROW = 5e-7, 1e-9
DIGEST = "ab" * 32


def linear(shape: tuple[int, ...], scheme: str = "u4g32a8", m: int = 1) -> Workload:
    return Workload("linear", shape, scheme, m, 2, "avx2")


def law(work: Workload, size: int) -> float:
    """A call, its rows, and bytes at 50 GB/s, 60 in the smaller set; of prompts a picosecond per multiplication."""
    outputs, inputs = work.shape
    if work.m > 1:
        return CALL + work.m * outputs * inputs * 1e-12
    nbytes = outputs * inputs * LinearScheme.parse(work.scheme).weight.storage_bytes(32, 128) / (32 * 128)
    return CALL + ROW * outputs + nbytes / (60e9 if size == SETS[0] else 50e9)


def table(schemes: tuple[str, ...] = ("u4g32a8",), noise: float = 0.0) -> LatencyTable:
    made = LatencyTable("here", "avx2", 2)
    for scheme in schemes:
        for i, shape in enumerate(SHAPES):
            for size in SETS:
                work = linear(shape, scheme)
                made.add(Entry(work, size, law(work, size) * (1 + noise * (-1) ** i)))
    return made


def test_measured_is_returned_as_measured() -> None:
    found = table().look_up(linear((576, 576)))
    assert found.measured and found.relative_error == 0
    assert found.milliseconds == pytest.approx(1e3 * law(linear((576, 576)), SETS[1]), rel=1e-12)
    assert table().milliseconds("linear", (576, 576), "u4g32a8") == found.milliseconds


def test_working_sets_are_interpolated() -> None:
    work = linear((1536, 576))
    low, high = (1e3 * law(work, size) for size in SETS)
    middle = round((SETS[0] ** -2 / 2 + SETS[1] ** -2 / 2) ** -0.5)  # linear in 1 / size**2
    at = {size: table().look_up(work, size).milliseconds for size in (1 << 20, SETS[0], middle, SETS[1], 1 << 40)}
    assert list(at.values()) == pytest.approx([low, low, (low + high) / 2, high, high])


def test_a_law_is_found_again_and_its_error_stated() -> None:
    new = linear((2048, 2048))
    found = table().look_up(new, SETS[0])
    assert not found.measured
    assert found.milliseconds == pytest.approx(1e3 * law(new, SETS[0]), rel=1e-3)
    assert found.relative_error < 1e-3
    noisy = table(noise=0.05).look_up(new, SETS[0])
    assert 0.03 < noisy.relative_error < 0.3
    assert abs(noisy.milliseconds / (1e3 * law(new, SETS[0])) - 1) < 0.15
    per_row = table().row_milliseconds("u4g32a8", (2048, 2048), working_set=SETS[0])
    assert per_row == pytest.approx(1e3 * (law(new, SETS[0]) - CALL) / 2048, rel=1e-3)


def test_a_shape_that_is_faster_than_the_law_is_so_at_other_schemes() -> None:
    made = table(("u4g32a8", "u8g32a8", "u3g32a8"))
    for scheme in ("u4g32a8", "u8g32a8"):
        for size in SETS:
            made.add(Entry(linear((49152, 576), scheme), size, law(linear((49152, 576), scheme), size) * 0.7))
    mixed = made.look_up(linear((49152, 576), "u3g32a8:24576+u4g32a8:24576"), SETS[0]).milliseconds
    wanted = [1e3 * 0.7 * law(linear((49152, 576), scheme), SETS[0]) for scheme in ("u3g32a8", "u4g32a8")]
    assert mixed == pytest.approx(sum(wanted) / 2, rel=0.05)


def test_a_scheme_that_was_not_measured_is_put_together_from_others() -> None:
    """Bytes cost the same whatever they say: a width, and scales and zero points by group, add up."""
    made = table(("u4g32a8", "u4g64a8", "u3g32a8", "u3g32za8", "u4rowa8"))
    new = linear((1536, 576), "u4g64za8")
    found = made.look_up(new, SETS[0])
    assert not found.measured and 0 <= found.relative_error < 0.05
    assert found.milliseconds == pytest.approx(1e3 * law(new, SETS[0]), rel=0.02)


def test_a_width_of_which_nothing_was_measured_is_an_error() -> None:
    with pytest.raises(UnsupportedError, match="no latency is known for u3g32a8") as caught:
        table().look_up(linear((64, 64), "u3g32a8"))
    assert caught.value.limit == "measured are width uniform 4"
    with pytest.raises(UnsupportedError, match="no latency is known for prompts on 2 threads"):
        table().look_up(linear((64, 64), m=8))


def test_runs_of_a_product_share_its_call() -> None:
    whole = table().look_up(linear((960, 576), "u4g32a8:768+u4g32a8:192"), SETS[0])
    assert not whole.measured
    assert whole.milliseconds == pytest.approx(1e3 * law(linear((960, 576)), SETS[0]), rel=1e-3)


def test_prompts_lie_between_the_numbers_of_tokens_that_were_measured() -> None:
    made = table()
    for m in (64, 256):
        for shape in SHAPES[:4]:
            made.add(Entry(linear(shape, m=m), SETS[1], law(linear(shape, m=m), 0)))
    for m in (32, 100, 512):
        new = linear((2048, 2048), m=m)
        assert made.look_up(new).milliseconds == pytest.approx(1e3 * law(new, 0), rel=1e-3)


def test_attention_is_linear_in_its_context_and_halves_unlike_caches() -> None:
    made = LatencyTable("here", "avx2", 2)
    cost = {"k16v16": 16.0, "k4g32v4g32": 5.0, "k8g32v8g32": 9.0}
    for names, each in cost.items():
        for context in (256, 2048):
            made.add(Entry(Workload("attention", (9, 3, 64, context), names, 1, 2, "avx2"), SETS[1], each * context))
    assert made.milliseconds("attention", (9, 3, 64, 1000), "k4g32v4g32") == pytest.approx(5e6)
    assert made.milliseconds("attention", (9, 3, 64, 4096), "k8g32v4g32") == pytest.approx(4096e3 * (9 + 5) / 2)
    # Between measured caches by bytes: 3 bits are stored as fewer bytes than 4, and less than the least is the least.
    other = made.look_up(Workload("attention", (9, 3, 64, 1000), "k6g32v6g32", 1, 2, "avx2"))
    assert 5e6 < other.milliseconds < 9e6 and other.relative_error == 0.2
    assert made.milliseconds("attention", (9, 3, 64, 1000), "k3g32v4g32") == pytest.approx(5e6)
    with pytest.raises(UnsupportedError, match="attention over caches of k3g32v3g32"):
        made.milliseconds("attention", (4, 2, 64, 1000), "k3g32v3g32")


def test_between_goes_on_beyond_its_points_when_told() -> None:
    known = {2: 20.0, 4: 30.0}
    assert [between(known, x) for x in (1, 3, 9)] == [20.0, 25.0, 30.0]
    assert [between(known, x, beyond=True) for x in (1, 3, 6, None)] == [15.0, 25.0, 40.0, 30.0]
    assert between({4: 30.0}, 8, beyond=True) == 60.0 and between({4: 30.0}, 8) == 30.0


def test_what_is_missing_is_each_thing_once() -> None:
    new, prompt = linear((64, 64)), linear((64, 64), m=16)
    wanted = [new, linear((576, 576)), new, prompt]
    assert missing(table(), wanted, SETS) == [(new, SETS[0]), (new, SETS[1]), (prompt, SETS[1])]
    disturbed = table()
    disturbed.add(Entry(linear((576, 576)), SETS[0], 1e-6, spread=0.5))
    assert missing(disturbed, [linear((576, 576))], SETS) == [(linear((576, 576)), SETS[0])]
    assert disturbed.disturbed == {f"{linear((576, 576))} in 64 MiB": 0.5}
    large = linear((49152, 1024), "f16")
    assert missing(table(), [large], SETS) == [(large, SETS[1])]


def anchor(tokens: int = 1, depth: int = 0, **changes: object) -> Anchor:
    fields = {
        "model": DIGEST,
        "scheme": "u4g32a8",
        "caches": "k16v16",
        "tokens": tokens,
        "depth": depth,
        "threads": 2,
        "linear": 1e-3,
        "rest": 1e-4 * tokens + 1e-6 * depth,
    }
    return Anchor(**{**fields, **changes})  # type: ignore[arg-type]


def test_tables_are_stored_and_continued(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    made = table()
    made.add_anchors([anchor(), anchor(64)])
    write_table(made, path)
    again = open_table(path, "here", "avx2", 2)
    assert again == made and digest(again) == digest(made)
    again.add(Entry(linear((64, 64)), SETS[0], 1e-6))
    assert digest(again) != digest(made)
    assert open_table(tmp_path / "new.json", "here", "avx2", 2).entries == {}
    with pytest.raises(InputError, match="another target"):
        open_table(path, "elsewhere", "avx2", 2)


def test_anchors_of_a_model_replace_older_ones() -> None:
    made = table()
    made.add_anchors([anchor(), anchor(64), anchor(threads=1)])
    made.add_anchors([anchor(scheme="u8g32a8")])
    assert {(a.scheme, a.threads) for a in made.anchors} == {("u8g32a8", 2), ("u4g32a8", 1)}
    with pytest.raises(UnsupportedError, match="nothing about the whole"):
        made.anchors_of("cd" * 32)


@pytest.mark.parametrize("seconds", [0.0, -1e-6, float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(InputError, match="not positive"):
        Entry(linear((64, 64)), SETS[0], seconds)


def test_a_changed_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    write_table(table(), path)
    document = json.loads(path.read_text())
    document["entries"][0]["seconds"] *= 2
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="was changed"):
        read_table(path)
    path.write_text(json.dumps({**document, "table_version": 9}))
    with pytest.raises(InputError, match="unknown version"):
        read_table(path)
    path.write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        read_table(path)
    with pytest.raises(InputError, match="cannot be written"):
        write_table(table(), tmp_path / "absent" / "t.json")


@pytest.mark.parametrize("change", [{"tokens": "1"}, {"extra": 1}, {"linear": 0.0}, {"model": "short"}])
def test_a_malformed_anchor_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputError, match="anchor"):
        Anchor.from_json({**anchor().to_json(), **change}, "t.json")


def test_the_rest_is_linear_in_depth_and_tokens() -> None:
    found = Anchors(tuple(anchor(m, d) for m, d in ((1, 0), (1, 100), (1, 300), (64, 0), (256, 0), (256, 1000))))
    assert found.rest(1, 200) == pytest.approx(1e-4 + 2e-4)
    assert found.rest(1, 600) == pytest.approx(1e-4 + 6e-4)
    assert found.rest(256, 500) == pytest.approx(256e-4 + 5e-4)
    assert found.rest(128, 500) == pytest.approx(128e-4 + 2.5e-4)
    assert found.rest(512, 0) == pytest.approx(512e-4)
    with pytest.raises(UnsupportedError, match="not measured with 7 tokens"):
        Anchors((anchor(),)).rest(7, 0)


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
