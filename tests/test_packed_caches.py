"""Packed caches from the command line to the artifact: named, checked, exact to the byte, and close to float ones."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from bitwright import pipeline
from bitwright.budgets.simulation import Simulation
from bitwright.errors import UnsupportedError, UsageError
from bitwright.frontend.calibrate.points import Points
from bitwright.frontend.interpreter import Interpreter
from bitwright.options import make_options, parse_caches
from bitwright.runtime.answer import SessionFeeder
from bitwright.runtime.context_shift import SINKS, ContextShift
from bitwright.runtime.session import load
from bitwright.scheme import CacheScheme
from tests.canonical_model import Shape, decoder

# RMS error of the logits by 8- and 4-bit caches, relative to their spread: half a step of range / 255 or / 15 per
# element is 0.1 % or 2 % of a normal range of six sigma, and two layers of attention average over tokens.
# What codes cost on this random model. Maps are calibrated on text that it samples, which depends on the machine's
# arithmetic: with k5-3rowm, v4rowm AVX2's and the portable kernels both come to 0.154 on Zen 3 (keys alone 0.135).
CLOSE = {"k=k8g16,v=v8row": 0.01, "v=v4g16": 0.15, "k=k8rowm,v=v8rowm": 0.01, "k=k5-3rowm,v=v4rowm": 0.17}
# The random model attends to all tokens alike, most of them packed: less is gained than on text.
CLOSE["k=k4rowmr32,v=v4rowmr32"] = 0.12

# Of the largest logit: prompts multiply 16-bit integers, whose scales depend on what else is in a chunk, and decoding
# does not. Seen with 16-bit caches: 1.5e-4.
WORDS = 2.0**-11


def no_weights(*_: object) -> np.ndarray:
    raise AssertionError("weights stay as they are")


@pytest.mark.parametrize("kv", CLOSE)
def test_an_artifact_with_packed_caches(tmp_path: Path, kv: str) -> None:
    size = 64 if "-" in kv else 32
    model = decoder(Shape(window=40, head_dim=size))
    exact = load(pipeline.compile(model, tmp_path / "f", context=64, chunk=16, scheme="f32").folder)
    artifact = pipeline.compile(model, tmp_path / "a", context=64, chunk=16, scheme="f32", kv=kv)
    ids = np.random.default_rng(7).integers(0, model.vocab, 45)
    session = load(artifact.folder)
    expected, logits = exact.logits(ids), session.logits(ids)
    assert 0 < np.sqrt(np.mean((logits - expected) ** 2)) < CLOSE[kv] * expected.std()
    session.reset()
    # Prompts and single tokens are rounded differently (words, bytes), which may move a code of the next layer by
    # a step: far less than all codes are off together.
    # Mapped caches differ by more (0.5 % of the spread seen, the cause not found yet): there within the bound above.
    near = (1.0 if "m" in kv else 0.2) * CLOSE[kv] * expected.std()
    np.testing.assert_allclose(session.prefill(ids[:30]), logits[29], atol=near)
    for position in range(30, 45):
        np.testing.assert_allclose(session.decode(int(ids[position])), logits[position], atol=near)
    state, interface = artifact.manifest.state, artifact.manifest.interface
    allocated = sum(math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize for tensor in state)
    # Two layers of one head, whole lines.
    fixed = 2 * sum(scheme.fixed_bytes(1, size) for scheme in parse_caches(kv).values())
    assert allocated == 64 * interface.cache_bytes_per_token + fixed
    assert interface.recent_run == (32 if "r32" in kv else 0)
    assert {s.name for s in parse_caches(kv).values()} <= set(artifact.manifest.scheme["cache"].split(" "))


@pytest.mark.parametrize("kv", ["k=k16,v=v16", "k=k4g32,v=v4g16", "k=k4rowm,v=v4rowm", "k=k4rowr32,v=v4rowr32"])
def test_a_context_shift_leaves_the_cache_of_a_fresh_session(tmp_path: Path, kv: str) -> None:
    model = decoder(Shape(window=40))
    folder = pipeline.compile(model, tmp_path / "a", context=64, chunk=16, scheme="u8g32a8", kv=kv).folder
    session, fresh = load(folder), load(folder)
    shift = ContextShift(context=64, keep=SINKS)
    feeder = SessionFeeder(session, shift)
    ids = [int(number) for number in np.random.default_rng(8).integers(0, model.vocab, 3 * 64)]
    feeder.feed(ids[:50])
    found = [feeder.decode(number) for number in ids[50:]][-1]
    assert found is not None
    # 30 tokens go at a time: the 65th, 95th, ... token of the text makes room, the 185th for the last time.
    assert feeder.dropped == 5 * 30
    fresh.prefill(shift.kept(ids[:185]))
    for number in ids[185:]:
        expected = fresh.decode(number)
    assert session.cache.tokens == fresh.cache.tokens
    np.testing.assert_array_equal(found.logits, expected)


def test_an_artifact_computes_what_is_simulated_of_recent_tokens(tmp_path: Path) -> None:
    """With packed caches the divergence of the two from each other is a fraction of that from the float model."""
    model = decoder(Shape(context=160))
    ids = np.random.default_rng(10).integers(0, model.vocab, 150)
    exact = load(pipeline.compile(model, tmp_path / "f", context=160, scheme="f32").folder).logits(ids)
    points = Points.of(model.graph)
    sites = pipeline.sites_of(model, make_options(), lambda _: None).sites
    simulation = Simulation(Interpreter(model.graph), points, sites, ids[None], no_weights, no_weights)
    for number, kv in enumerate(("k=k3row,v=v3row", "k=k3rowr32,v=v3rowr32")):
        artifact = pipeline.compile(model, tmp_path / str(number), context=160, scheme="f32", kv=kv)
        schemes = {s.name: parse_caches(kv)[s.kind[0]] for s in sites if not s.weight}
        with simulation.changed(schemes):
            simulated = simulation.interpreter.logits(ids)
        off, apart = (np.sqrt(np.mean((x - simulated) ** 2)) for x in (exact, load(artifact.folder).logits(ids)))
        assert apart < 0.12 * off  # 0.06 seen: a code of the second layer may round the other way
        if number == 0:
            packed = off
    assert off < 0.9 * packed
    np.testing.assert_allclose(simulated[:32], exact[:32], rtol=1e-3, atol=1e-4)  # all of one run


@pytest.mark.parametrize("run", [32, 64])
def test_a_session_goes_back_into_a_run_that_the_ring_no_longer_holds(tmp_path: Path, run: int) -> None:
    model, kv = decoder(Shape(context=160)), f"k=k4rowr{run},v=v3rowr{run}"
    folder = pipeline.compile(model, tmp_path / "a", context=160, chunk=48, scheme="f32", kv=kv).folder
    ids = [int(number) for number in np.random.default_rng(9).integers(0, model.vocab, 160)]
    session, fresh = load(folder), load(folder)
    expected = fresh.logits(ids)
    near = 2 * WORDS * np.abs(expected).max()
    session.prefill(ids[:100])
    for back in (97, 96, 70, 64, 10, 10, 5):
        session.rewind(back)
        assert session.cache.tokens == tuple(ids[:back])
        np.testing.assert_allclose(session.prefill(ids[back : back + 20]), expected[back + 19], atol=near)
        np.testing.assert_allclose(session.decode(ids[back + 20]), expected[back + 20], atol=near)
    # A file keeps the ring; behind it, going back begins the run anew.
    session.rewind(5)
    session.prefill(ids[5:77])
    session.save_cache(tmp_path / "cache")
    fresh.restore_cache(tmp_path / "cache")
    np.testing.assert_allclose(fresh.decode(ids[77]), expected[77], atol=near)
    fresh.rewind(40)
    np.testing.assert_allclose(fresh.prefill(ids[40:]), expected[-1], atol=near)


def test_tokens_are_appended_in_pieces_that_begin_a_run_or_end_in_it(tmp_path: Path) -> None:
    folder = pipeline.compile(
        decoder(Shape(context=160)), tmp_path / "a", context=160, chunk=80, kv="k4rowr64,v4rowr64"
    ).folder
    session = load(folder)
    pieces = []
    while session.position < 160:
        piece = session.cache.piece(160 - session.position, 80 if session.position else 20)
        session.cache.append([1] * piece)
        pieces.append(piece)
    assert pieces == [20, 44, 80, 16]


def test_runs_of_different_lengths_are_refused_with_the_sites(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="different numbers of recent tokens") as caught:
        pipeline.compile(decoder(), tmp_path / "a", context=64, kv="k4rowr32,v4row")
    assert "keys and values of layer.0" in str(caught.value)
    plan = pipeline.compile(decoder(), tmp_path / "b", context=64, kv="k4rowr32,v4rowr32").folder / "plan.json"
    document = json.loads(plan.read_text())
    for letter in "kv":
        document["schemes"][f"layer.1.{letter}_cache"] = f"{letter}4rowr64"
    (tmp_path / "plan.json").write_text(json.dumps(document))
    with pytest.raises(UnsupportedError, match="different numbers of recent tokens") as caught:
        pipeline.compile(decoder(), tmp_path / "c", context=64, plan=tmp_path / "plan.json")
    assert "layer.0.k_cache r32, layer.1.k_cache r64" in str(caught.value)


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_an_interrupted_call_leaves_the_session_usable(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have written the ring of a later run before the tokens were noted."""
    model = decoder(Shape(context=160))
    folder = pipeline.compile(model, tmp_path / "a", context=160, chunk=48, kv="k4rowr32,v4rowr32", scheme="f32").folder
    ids = [int(number) for number in np.random.default_rng(11).integers(0, model.vocab, 160)]
    session = load(folder)
    expected = load(folder).logits(ids)
    near = 2 * WORDS * np.abs(expected).max()
    session.prefill(ids[: 100 if kind == "prefill" else 64])
    append = session.cache.append

    def interrupted(tokens: list[int]) -> None:
        if session.position >= (128 if kind == "prefill" else 64):
            raise KeyboardInterrupt
        append(tokens)

    monkeypatch.setattr(session.cache, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.prefill(ids[100:150]) if kind == "prefill" else session.advance(ids[64])
    monkeypatch.setattr(session.cache, "append", append)
    back = 100 if kind == "prefill" else 40  # in the run whose places were taken, as far as was noted its own
    session.rewind(back)
    np.testing.assert_allclose(session.decode(ids[back]), expected[back], atol=near)
    np.testing.assert_allclose(session.prefill(ids[back + 1 : 130]), expected[129], atol=near)


def test_a_group_that_no_head_has_is_refused_with_the_sites(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="2 of 19 sites have no kernel") as caught:
        pipeline.compile(decoder(), tmp_path / "a", context=64, kv="k=k4g64")
    assert "layer.0.k_cache [1 x 32] k4g64: a group of 64 does not divide a head of 32" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("k=k8g32,v=v4g32", {"k": "k8g32", "v": "v4g32"}),
        ("k=u4g32, v=u3row", {"k": "k4g32", "v": "v3row"}),
        ("v4g32", {"v": "v4g32"}),
        ("k=k16", {"k": "k16"}),
    ],
)
def test_caches_by_name(text: str, expected: dict[str, str]) -> None:
    assert parse_caches(text) == {letter: CacheScheme.parse(name) for letter, name in expected.items()}


@pytest.mark.parametrize("text", ["k=v4g32", "k=k8g32,k=k4g32", "q=k4g32", "k=", "k=u4g32a8"])
def test_names_that_mean_nothing(text: str) -> None:
    with pytest.raises(UsageError):
        parse_caches(text)


def test_a_plan_and_caches_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="a plan and schemes were given") as caught:
        make_options(plan="plan.json", kv="v4g32")
    assert "--kv" in str(caught.value)


def test_options_say_which_caches() -> None:
    assert "caches k8g32 v4g32" in make_options(kv="k8g32,v4g32").describe()
