"""Latencies of kernels: as measured, or predicted with the error that is stated."""

from __future__ import annotations

import pytest

from bitwright.autotune.interpolation import between
from bitwright.autotune.latency import Entry, LatencyTable, missing
from bitwright.autotune.workload import Workload
from bitwright.errors import UnsupportedError
from tests.autotune.latency_tables import CALL, SETS, SHAPES, law, linear, table


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
