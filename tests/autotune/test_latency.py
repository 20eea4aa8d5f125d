"""Latency tables: measured, predicted with the error that is stated, stored, summed over a plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitwright.autotune.latency import Entry, LatencyTable, missing
from bitwright.autotune.predict import predict_prefill, predict_step, step_workloads, working_set
from bitwright.autotune.workload import Workload
from bitwright.errors import InputError, UnsupportedError
from bitwright.plan import Plan, uniform_plan
from bitwright.runs import parse_weights
from bitwright.scheme import LinearScheme
from bitwright.site import Site

SETS = (64 << 20, 128 << 20)
SHAPES = ((192, 576), (576, 576), (1536, 576), (576, 1536), (3072, 1024), (49152, 576))


def linear(shape: tuple[int, ...], scheme: str = "u4g32a8", m: int = 1) -> Workload:
    return Workload("linear", shape, scheme, m, 2, "avx2")


def law(work: Workload, working_set: int) -> float:
    """Half a microsecond and the bytes at 50 GB/s, 60 in the smaller set."""
    nbytes = LinearScheme.parse(work.scheme).weight.storage_bytes(*work.shape)  # type: ignore[arg-type]
    return 5e-7 + nbytes / (60e9 if working_set == SETS[0] else 50e9)


def table(noise: float = 0.0) -> LatencyTable:
    made = LatencyTable("here", "avx2", {"step": 5e-6})
    for i, shape in enumerate(SHAPES):
        for size in SETS:
            work = linear(shape)
            made.add(Entry(work, size, law(work, size) * (1 + noise * (-1) ** i)))
    return made


def test_measured_is_returned_as_measured() -> None:
    found = table().look_up(linear((576, 576)))
    assert found.measured and found.relative_error == 0
    assert found.milliseconds == pytest.approx(1e3 * law(linear((576, 576)), SETS[1]), rel=1e-12)
    assert table().milliseconds("linear", (576, 576), "u4g32a8", 1, 2) == found.milliseconds


def test_working_sets_are_interpolated() -> None:
    work = linear((1536, 576))
    low, high = (1e3 * law(work, size) for size in SETS)
    at = {size: table().look_up(work, size).milliseconds for size in (1 << 20, SETS[0], 96 << 20, SETS[1], 1 << 40)}
    assert list(at.values()) == pytest.approx([low, low, (low + high) / 2, high, high])


def test_a_law_is_found_again_and_its_error_stated() -> None:
    new = linear((2048, 2048))
    found = table().look_up(new, SETS[0])
    assert not found.measured
    assert found.milliseconds == pytest.approx(1e3 * law(new, SETS[0]), rel=0.01)
    assert found.relative_error < 0.01
    noisy = table(0.05).look_up(new, SETS[0])
    assert 0.03 < noisy.relative_error < 0.3
    assert abs(noisy.milliseconds / (1e3 * law(new, SETS[0])) - 1) < 0.15
    assert set(table(0.05).relative_errors()) == {"linear u4g32a8 decode 2 avx2"}


def test_too_little_to_predict_from_is_an_error() -> None:
    with pytest.raises(UnsupportedError, match="no latency is known for linear 64x64 u3g32a8 m1 t2 avx2") as caught:
        table().look_up(linear((64, 64), "u3g32a8"))
    assert "3 measured shapes" in str(caught.value.limit)


def test_what_is_missing_is_each_thing_once() -> None:
    new = linear((64, 64))
    assert missing(table(), [new, linear((576, 576)), new], SETS) == [(new, SETS[0]), (new, SETS[1])]


def test_tables_are_stored_and_continued(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    made = table()
    made.write(path)
    again = LatencyTable.open(path, "here", "avx2")
    assert again.entries == made.entries and again.constants == made.constants and again.digest == made.digest
    again.add(Entry(linear((64, 64)), SETS[0], 1e-6))
    assert again.digest != made.digest
    assert LatencyTable.open(tmp_path / "new.json", "here", "avx2").entries == {}
    with pytest.raises(InputError, match="another target"):
        LatencyTable.open(path, "elsewhere", "avx2")


def test_a_changed_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    table().write(path)
    document = json.loads(path.read_text())
    document["entries"][0]["seconds"] *= 2
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="was changed"):
        LatencyTable.read(path)
    path.write_text(json.dumps({**document, "table_version": 9}))
    with pytest.raises(InputError, match="unknown version"):
        LatencyTable.read(path)
    path.write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        LatencyTable.read(path)
    with pytest.raises(InputError, match="cannot be written"):
        table().write(tmp_path / "absent" / "t.json")


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


def test_a_plan_becomes_the_kernels_that_a_step_runs() -> None:
    sites = llama(2)
    names = [
        f"{w.op} {'x'.join(map(str, w.shape))} {w.scheme}" for w in step_workloads(sites, plan(sites), 33, 2, "avx2")
    ]
    layer = [
        "linear 960x576 u4g32a8",
        "linear 576x576 u4g32a8",
        "linear 3072x576 u4g32a8",
        "linear 576x1536 u4g32a8",
        "attention 9x3x64x33 k16v16",
        "append 3x64 k16v16",
        "rope 9x64 ",
        "rope 3x64 ",
        "quantize 576 a8g32",
        "norm 576 a8g32",
        "norm 576 a8g32",
        "glu 1536 a8g32",
    ]
    once = ["linear 49152x576 u4g32a8", "embedding 49152x576 u4g32a8", "argmax 49152 ", "norm 576 a8g32"]
    assert sorted(names) == sorted(2 * layer + once)


def test_members_with_other_schemes_are_runs_of_one_product() -> None:
    sites = llama(1)
    schemes = {
        **plan(sites).schemes,
        "layer.0.v": LinearScheme.parse("u6g32a8"),
        "layer.0.o": parse_weights("u4g32a8:384+u3g32a8:192"),
    }
    mixed = Plan(schemes, "m", "t", {})
    found = {(w.shape, w.scheme) for w in step_workloads(sites, mixed, 1, 2, "avx2") if w.op == "linear"}
    assert {
        ((960, 576), "u4g32a8:768+u6g32a8:192"),
        ((576, 576), "u4g32a8:384+u3g32a8:192"),
        ((3072, 576), "u4g32a8"),
    } < found
    saved = 192 * 576 // 8  # a bit of 192 rows; the wider v takes two bits more
    assert working_set(sites, mixed, 1) == working_set(sites, plan(sites), 1) - saved + 2 * saved


def test_runs_of_a_product_are_predicted_one_by_one() -> None:
    made = table()
    whole = made.look_up(linear((960, 576), "u4g32a8:768+u4g32a8:192"), SETS[0])
    parts = [1e3 * law(linear(shape), SETS[0]) for shape in ((768, 576), (192, 576))]
    assert not whole.measured and whole.milliseconds == pytest.approx(sum(parts), rel=0.02)


def test_a_step_is_the_sum_of_its_kernels() -> None:
    sites = llama(2)
    chosen, size = plan(sites), working_set(llama(2), plan(sites), 33)
    made = LatencyTable("here", "avx2", {"step": 5e-6})
    kernels = step_workloads(sites, chosen, 33, 2, "avx2")
    for i, work in enumerate(dict.fromkeys(kernels)):
        made.add(Entry(work, SETS[0], (i + 1) * 1e-6))
    found = predict_step(made, sites, chosen, 33, 2)
    times = {work: (i + 1) * 1e-3 for i, work in enumerate(dict.fromkeys(kernels))}
    assert found.milliseconds == pytest.approx(5e-3 + sum(times[work] for work in kernels))
    assert found.predicted == 0 and found.relative_error == 0
    assert sum(found.by_op.values()) == pytest.approx(found.milliseconds)
    # 2 layers of (960 + 576 + 3072) * 576 + 576 * 1536 weights and the table, 4.5 bits each; 2 * 2 * 33 * 192 * 2
    # bytes.
    assert size == (2 * (4608 * 576 + 576 * 1536) + 49152 * 576) * 9 // 16 + 4 * 33 * 192 * 2


def test_a_step_that_is_partly_predicted_says_so() -> None:
    sites = llama(1)
    chosen = plan(sites)
    made = table(0.05)
    for work in step_workloads(sites, chosen, 8, 2, "avx2"):
        if work.op != "linear":
            made.add(Entry(work, SETS[0], 1e-6))
    found = predict_step(made, sites, chosen, 8, 2)
    assert found.predicted == 2  # 960 x 576 and 3072 x 576
    assert 0 < found.relative_error < 0.1


def test_prefill_counts_chunks_and_the_lm_head_once() -> None:
    sites = llama(1)
    chosen = plan(sites)
    made = LatencyTable("here", "avx2")
    for shape in ((960, 576), (576, 576), (3072, 576), (576, 1536)):
        for m, seconds in ((256, 1e-3), (88, 1e-4)):
            made.add(Entry(linear(shape, m=m), SETS[0], seconds))
    made.add(Entry(linear((49152, 576)), SETS[0], 5e-5))
    assert predict_prefill(made, sites, chosen, 600, 256, 2).milliseconds == pytest.approx(2 * 4 + 4 * 0.1 + 0.05)
