"""Moments are those of what the layers read, however many passes they take, and are not computed twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitwright.errors import InputError
from bitwright.frontend.calibrate.collect import collect
from bitwright.frontend.calibrate.products import products
from bitwright.frontend.interpreter import Interpreter
from bitwright.frontend.model import ImportedModel
from bitwright.moments import MomentStore, calibration_digest
from tests.canonical_model import Shape, decoder


def _windows(model: ImportedModel) -> np.ndarray:
    return np.random.default_rng(1).integers(0, model.vocab, (3, 20))


def _store(folder: Path, model: ImportedModel) -> MomentStore:
    return MomentStore(folder, calibration_digest(model.digest, _windows(model)))


@pytest.mark.parametrize("tied", [True, False])
def test_products_have_the_names_and_shapes_of_the_sites(tied: bool) -> None:
    from bitwright.frontend.relax.module import import_model
    from bitwright.passes.find_sites import FindSites

    model = decoder(Shape(tied=tied))
    sites = {site.weight: site.shape[1] for site in FindSites()(import_model(model, capacity=64)).sites if site.weight}
    found = {product.weight: product.inputs for product in products(model.graph)}
    embedding = set() if tied else {"table"}  # an untied embedding is looked up, it multiplies nothing
    assert found == {name: width for name, width in sites.items() if name not in embedding}


def test_moments_are_means_over_all_positions(tmp_path: Path) -> None:
    model = decoder()
    moments = collect(model, Interpreter(model.graph), _windows(model), _store(tmp_path, model))
    interpreter = Interpreter(model.graph)
    for product in products(model.graph)[::5]:
        rows = np.concatenate(
            [
                interpreter.run(interpreter.feeds(window), (product.activation,))[product.activation][0].numpy()
                for window in _windows(model)
            ]
        ).astype(np.float64)
        found = moments.of(product.weight)
        assert found is not None and found.dtype == np.float32
        np.testing.assert_allclose(found, rows.T @ rows / 60, rtol=1e-4, atol=1e-5)
    assert moments.tokens == 60
    assert moments.of("norm") is None


def test_little_memory_takes_more_passes_and_gives_the_same(tmp_path: Path) -> None:
    model = decoder()
    ticks: list[tuple[int, int]] = []
    whole = collect(model, Interpreter(model.graph), _windows(model), _store(tmp_path / "a", model))
    pieces = collect(
        model,
        Interpreter(model.graph),
        _windows(model),
        _store(tmp_path / "b", model),
        memory=3 * 4 * 96 * 96,
        progress=lambda done, total: ticks.append((done, total)),
    )
    # Inputs of qkv, o, gate and up (96 wide) and of down (160 wide: 2.8 of the others), twice, and the lm_head's.
    assert ticks == [(i, 15) for i in range(1, 16)]
    for product in products(model.graph):
        np.testing.assert_array_equal(whole.of(product.weight), pieces.of(product.weight))


def test_what_is_stored_is_not_computed_again(tmp_path: Path) -> None:
    model = decoder()
    store = _store(tmp_path, model)
    collect(model, Interpreter(model.graph), _windows(model), store)
    ticks: list[tuple[int, int]] = []
    collect(model, Interpreter(model.graph), _windows(model), store, progress=lambda *tick: ticks.append(tick))
    assert not ticks
    last = products(model.graph)[-1].activation
    store.path(last).unlink()
    collect(model, Interpreter(model.graph), _windows(model), store, progress=lambda *tick: ticks.append(tick))
    assert ticks == [(1, 3), (2, 3), (3, 3)]


def test_an_interrupted_pass_leaves_no_moments(tmp_path: Path) -> None:
    model = decoder()

    def stop(done: int, _total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(model, Interpreter(model.graph), _windows(model), _store(tmp_path, model), progress=stop)
    assert not list(tmp_path.iterdir())


def test_another_text_or_model_has_another_digest() -> None:
    windows = np.arange(20).reshape(2, 10)
    digests = {
        calibration_digest("a", windows),
        calibration_digest("b", windows),
        calibration_digest("a", windows.reshape(4, 5)),
        calibration_digest("a", windows + 1),
    }
    assert len(digests) == 4
    assert calibration_digest("a", windows.astype(np.int64)) in digests


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    store = MomentStore(tmp_path, "0" * 64)
    store.put("x", np.eye(3, dtype=np.float32))
    np.testing.assert_array_equal(store.get("x"), np.eye(3))
    store.path("x").write_bytes(store.path("x").read_bytes()[:50])
    with pytest.raises(InputError, match="the moments of activation 'x' cannot be read") as caught:
        store.get("x")
    assert str(store.path("x")) in str(caught.value)
    assert not list(tmp_path.rglob("*.part"))
