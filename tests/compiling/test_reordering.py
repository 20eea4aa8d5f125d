"""--reorder: the same function with the dearest hidden units first; profiles, plans and artifacts take it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import bitwright
from bitwright import pipeline
from bitwright.allocation import Budgets
from bitwright.budgets.budgeted import budgeted
from bitwright.budgets.correction import Measurer
from bitwright.budgets.profile_options import ProfileOptions
from bitwright.budgets.profiling import profile_model
from bitwright.compiling.reordering import orders_of, reordered
from bitwright.compiling.transforming import transformed
from bitwright.errors import InputError, UsageError
from bitwright.frontend.calibrate.collect import collect
from bitwright.frontend.calibrate.gradients import observe
from bitwright.frontend.calibrate.products import products
from bitwright.frontend.interpreter import Interpreter
from bitwright.frontend.model import ImportedModel
from bitwright.frontend.reorder.hidden import hidden_places
from bitwright.moments import FREQUENCIES, Moments, MomentStore, apart, costs_of
from bitwright.options import make_options
from bitwright.plan import Plan, check_order
from bitwright.program import TOKEN_RANK
from bitwright.runs import parse_weights
from bitwright.scheme import CacheScheme, LinearScheme
from tests.canonical_model import Shape, decoder
from tests.compiling.profiles import profiled
from tests.compiling.test_calibration import word_tokenizer

IDS = np.arange(30) * 7 % 101


@pytest.fixture(scope="module")
def model() -> ImportedModel:
    return replace(decoder(Shape(layers=2, width=64, heads=2, hidden=256)), tokenizer_json=word_tokenizer())


def calibrated(model: ImportedModel, folder: Path) -> tuple[Moments, np.ndarray]:
    windows = np.random.default_rng(0).integers(0, model.vocab, (3, 40))
    store = MomentStore(folder, "a" * 64)
    return collect(model, Interpreter(model.graph), windows, store, by_gradient=True), windows


@pytest.mark.parametrize("shape", [Shape(), Shape(bias=True, tied=False)])
def test_the_function_stays_and_units_change_places(tmp_path: Path, shape: Shape) -> None:
    model = decoder(shape)
    moments, _ = calibrated(model, tmp_path)
    orders = orders_of(model, moments)
    made = reordered(model, moments, orders)
    assert made.places == shape.layers
    assert all(sorted(order) == list(range(place.units)) for place, order in orders.units.items())
    assert any((order != np.arange(place.units)).any() for place, order in orders.units.items())
    assert orders.tokens is not None and made.tokens > 50
    expected, found = (Interpreter(m.graph).logits(IDS) for m in (model, made.model))
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    before, after = (m.graph.graph.initializers for m in (model, made.model))
    for place, order in orders.units.items():
        for name in place.makers:
            was, now = (np.asarray(values[name].const_value.numpy()) for values in (before, after))  # type: ignore[union-attr]
            np.testing.assert_array_equal(now, was[..., order])


def test_gate_and_up_make_a_hidden_layer() -> None:
    places = hidden_places(decoder(Shape(layers=2)).graph)
    assert [{name.split(".")[-2] for name in place.makers} for place in places] == [{"gate", "up"}] * 2
    assert [[name.split(".")[-2] for name in place.readers] for place in places] == [["down"]] * 2


def test_costs_are_the_definition(tmp_path: Path) -> None:
    model = decoder(Shape(layers=2))
    moments, windows = calibrated(model, tmp_path)
    up = next(p for p in products(model.graph) if "up" in p.weight and "1" in p.weight)
    seen = observe(Interpreter(model.graph), windows, [up.activation], [up.output])
    x, g = (np.asarray(array, np.float64) for array in (seen.values[up.activation], seen.gradients[up.output]))
    expected = (g**2 * (x**2).sum(axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(moments.store.get(costs_of(up.output)), expected, rtol=1e-3)


def test_the_first_quarter_of_the_text_has_no_part_in_the_order_of_tokens(tmp_path: Path) -> None:
    model = decoder(Shape(layers=1))
    moments, windows = calibrated(model, tmp_path)
    probabilities = [np.exp(_log_softmax(Interpreter(model.graph).logits(window))).mean(0) for window in windows]
    assert len(apart(windows)) == 1
    np.testing.assert_allclose(moments.store.get(FREQUENCIES), np.mean(probabilities[1:], axis=0), rtol=1e-4)


@pytest.mark.parametrize("rotate", [(), ("residual", "hidden")])
def test_moments_are_those_of_the_reordered_model(tmp_path: Path, rotate: tuple[str, ...]) -> None:
    model = decoder(Shape(bias=True, heads=4, kv_heads=2, head_dim=24))
    before, windows = calibrated(model, tmp_path)
    ready = transformed(model, before, equalise=True, reorder=True, rotate=rotate)  # type: ignore[arg-type]
    store = MomentStore(tmp_path, "b" * 64)
    after = collect(ready.model, Interpreter(ready.model.graph), windows, store, by_gradient=True)
    assert ready.moments is not None
    for product in products(ready.model.graph):
        if "down" not in product.weight:
            continue  # weights of tokens are those of the model as it was, except where gradients stay the same
        found, expected = ready.moments.of(product.weight), after.of(product.weight)
        assert found is not None and expected is not None
        scale = float(np.trace(found) / np.trace(expected))
        np.testing.assert_allclose(found, scale * expected, rtol=0.05, atol=0.02 * float(np.abs(found).max()))


def test_the_dearest_unit_is_the_first(tmp_path: Path, model: ImportedModel) -> None:
    moments, _ = calibrated(model, tmp_path)
    made = reordered(model, moments, orders_of(model, moments))
    again, _ = calibrated(made.model, tmp_path / "again")
    for order in orders_of(made.model, again).units.values():
        assert np.abs(order - np.arange(len(order))).mean() < 0.02 * len(order)


def test_a_plan_of_a_reordered_profile_is_compiled_as_it_was_scored(
    model: ImportedModel, text: Path, tmp_path: Path
) -> None:
    profile = profiled(model, tmp_path / "profile", text, equalise=True, reorder=True)
    assert profile.header.reordered
    settings = {"quantizer": "gptq", "calibration": text, "equalise": True, "weigh_tokens": True}
    options = make_options(**settings, reorder=True, table="f32")  # type: ignore[arg-type]
    ready = budgeted(model, tmp_path / "profile", Budgets(max_bytes=150_000), options, 0, 1, lambda _: None)
    assert ready.plan is not None and any(isinstance(s, LinearScheme) for s in ready.plan.schemes.values())
    artifact = pipeline.compile_model(model, tmp_path / "out", ready)
    assert artifact.manifest.digests["order"] == profile.header.reordered
    assert "| reorder | places 2, tokens " in (artifact.folder / "report.md").read_text()
    windows = np.random.default_rng(1).integers(0, model.vocab, (2, 40))
    simulated = Measurer(profile, lambda _: None, model).simulation(windows)
    divergence = simulated.divergence(ready.plan.schemes)
    session = bitwright.load(artifact.folder)
    found = []
    for window in windows:
        session.reset()
        p, q = (_log_softmax(logits) for logits in (Interpreter(model.graph).logits(window), session.logits(window)))
        found.append((np.exp(p) * (p - q)).sum(-1).mean())
    assert np.mean(found) == pytest.approx(divergence, rel=0.25)
    assert ready.plan.notes["order"] == profile.header.reordered
    assert ready.plan.notes["compile"] == ["--quantizer gptq", "--weigh-tokens", "--equalise", "--reorder"]


@pytest.mark.parametrize("tied", [True, False])
def test_an_artifact_with_ordered_rows_answers_in_tokens(tmp_path: Path, text: Path, tied: bool) -> None:
    """The same codes by row: only sums of hidden units, in float32 here, are added in another order."""
    model = replace(decoder(Shape(tied=tied, layers=1, hidden=64)), tokenizer_json=word_tokenizer())
    settings = {"quantizer": "gptq", "calibration": text, "weigh_tokens": True, "scheme": "f32", "table": "u3g32a8"}
    folders = {}
    for reorder in (False, True):
        options = make_options(**settings, reorder=reorder)  # type: ignore[arg-type]
        folders[reorder] = pipeline.compile_model(model, tmp_path / str(reorder), options).folder
    assert [TOKEN_RANK in load_file(folders[reorder] / "weights.safetensors") for reorder in (False, True)] == [
        False,
        True,
    ]
    before, after = (bitwright.load(folders[reorder]) for reorder in (False, True))
    expected = before.logits(IDS)
    np.testing.assert_allclose(after.logits(IDS), expected, rtol=0, atol=1e-4)
    after.reset()
    np.testing.assert_allclose(after.prefill(IDS[:5]), expected[4], rtol=0, atol=1e-4)
    assert after.module.decode_step is not None
    for token, row in zip(IDS[5:], expected[5:], strict=True):
        found = after.advance(int(token))
        assert found.best == row.argmax()
        np.testing.assert_allclose(found.logits, row, rtol=0, atol=1e-4)


def test_runs_of_ordered_rows_are_found_by_token(tmp_path: Path, text: Path) -> None:
    model = replace(decoder(Shape(layers=1, hidden=64)), tokenizer_json=word_tokenizer())
    single = parse_weights("f32")
    names = [site.name for site in pipeline.sites_of(model, make_options(), lambda _: None).sites if site.weight]
    schemes = {**dict.fromkeys(names, single), "table": parse_weights("u8g32a16:64+u6g32a16:37")}
    caches = {f"layer.0.{letter}_cache": CacheScheme.parse(f"{letter}16") for letter in "kv"}
    plan = Plan({**schemes, **caches}, model.digest, "")
    options = make_options(quantizer="gptq", calibration=text, weigh_tokens=True, reorder=True)
    folder = pipeline.compile_model(model, tmp_path / "out", replace(options, plan=plan)).folder
    assert sorted(load_file(folder / "weights.safetensors")[TOKEN_RANK]) == list(range(101))
    session = bitwright.load(folder)
    expected = Interpreter(model.graph).logits(IDS)
    found = session.logits(IDS)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("reorder", [False, True])
def test_rows_of_tokens_are_scored_on_text_that_had_no_part_in_their_order(
    model: ImportedModel, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reorder: bool
) -> None:
    from bitwright.frontend.calibrate import gradients

    read: dict[bool, set[int]] = {True: set(), False: set()}

    def watched(*args: Any, **options: Any) -> Any:
        seen = observe(*args, **options)
        _, windows, values, _ = args
        read[_head_input(model) in values].add(len(windows))
        return seen

    monkeypatch.setattr(gradients, "observe", watched)
    options = ProfileOptions(
        schemes=("u3g32",), quantizer="gptq", calibration=text, reorder=reorder, weigh_tokens=True, tokens=1 << 20
    )
    made = profile_model(model, tmp_path, options)
    windows = np.load(made.folder / "windows.npy")
    assert len(apart(windows)) < len(windows)
    expected = len(apart(windows)) if reorder else len(windows)
    assert read[True] == {expected} and read[False] <= {len(windows)}


def _head_input(model: ImportedModel) -> str:
    return next(p.activation for p in products(model.graph) if p.output == "logits")


def test_ordered_models_are_trained_as_others(tmp_path: Path, text: Path) -> None:
    model = replace(decoder(Shape(layers=1, hidden=64)), tokenizer_json=word_tokenizer())
    options = make_options(
        quantizer="gptq", calibration=text, weigh_tokens=True, reorder=True, scheme="u5g32a8", reconstruct=2, distill=2
    )
    session = bitwright.load(pipeline.compile_model(model, tmp_path / "out", options).folder)
    expected, found = Interpreter(model.graph).logits(IDS), session.logits(IDS)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def test_codes_of_another_order_are_refused(model: ImportedModel, text: Path, tmp_path: Path) -> None:
    profiled(model, tmp_path / "profile", text, equalise=True)
    options = make_options(quantizer="gptq", calibration=text, equalise=True, weigh_tokens=True, reorder=True)
    with pytest.raises((InputError, UsageError), match="profile"):
        budgeted(model, tmp_path / "profile", Budgets(max_bytes=150_000), options, 0, 1, lambda _: None)
    with pytest.raises(UsageError, match="codes are not those"):
        pipeline.compile_model(model, tmp_path / "out", replace(options, codes=tmp_path / "profile" / "codes"))


def test_without_gradients_there_is_no_order() -> None:
    with pytest.raises(UsageError, match="put in order by gradients") as caught:
        make_options(quantizer="gptq", reorder=True)
    assert caught.value.remedy == "add --weigh-tokens"


def test_runs_of_another_order_are_refused() -> None:
    runs = {"layer.0.mlp.0": parse_weights("u4g32a8:64+u3g32a8:64")}
    plan = Plan(runs, "m", "t", {"order": "ab"})
    check_order(plan, "ab")
    with pytest.raises(UsageError, match="in another order") as caught:
        check_order(plan, "")
    assert caught.value.remedy == "add --reorder --weigh-tokens"
    with pytest.raises(UsageError, match="in another order"):
        check_order(plan, "cd")
    check_order(Plan(runs, "m", "t"), "cd")  # a plan by hand says nothing of an order
    check_order(Plan({"layer.0.mlp.0": parse_weights("u4g32a8")}, "m", "t", {"order": "ab"}), "")
