"""Factors move only where the function stays the same, and are the best of what they minimise."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bitwright.frontend.equalise.apply import factors_of, scaled, spread
from bitwright.frontend.equalise.factors import best_factors
from bitwright.frontend.equalise.places import Place, places
from bitwright.frontend.interpreter import Interpreter
from tests.canonical_model import Shape, decoder

GQA = Shape(layers=2, heads=4, kv_heads=2, head_dim=24)


def _by_readers(model: ir.Model) -> dict[tuple[str, ...], Place]:
    return {place.readers: place for place in places(model)}


@pytest.mark.parametrize("bias", [False, True])
def test_a_llama_layer_has_four_places(bias: bool) -> None:
    model = decoder(Shape(layers=1, heads=4, kv_heads=2, head_dim=24, bias=bias)).graph
    found = _by_readers(model)
    q, k, v, o, gate, up, down = (f"layers.0.{name}.weight" for name in ("q", "k", "v", "o", "gate", "up", "down"))
    with_bias = ("layers.0.v.bias",) if bias else ()
    # The final norm's reader is the table, which is looked up as well. With biases, `Add` still is one linear reader.
    assert {readers: place.divided for readers, place in found.items()} == {
        (q, k, v): ("layers.0.norm1",),
        (o,): (v, *with_bias),
        (gate, up): ("layers.0.norm2",),
        (down,): (up, *(("layers.0.up.bias",) if bias else ())),
    }
    assert found[(o,)].heads == (2, 2, 24) and found[(o,)].channels == 48
    assert found[(down,)].heads == (1, 1, 160)


def test_an_untied_head_reads_the_last_norm() -> None:
    assert _by_readers(decoder(Shape(layers=1, tied=False)).graph)[("head",)].divided == ("norm",)


@pytest.mark.parametrize("shape", [GQA, Shape(bias=True), Shape(tied=False, window=8)])
def test_any_factors_leave_the_function_as_it_is(shape: Shape) -> None:
    model = decoder(shape)
    random = np.random.default_rng(3)
    factors = {p: np.exp(random.normal(0, 1, p.channels)).astype(np.float32) for p in places(model.graph)}
    changed = scaled(model.graph, factors)
    ids = random.integers(0, model.vocab, 40)
    before, after = Interpreter(model.graph).logits(ids), Interpreter(changed).logits(ids)
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4)
    names = [name for p in factors for name in (*p.divided, *p.readers)]
    for name in names:
        old, new = (m.graph.initializers[name].const_value for m in (model.graph, changed))
        assert old is not None and new is not None and np.abs(old.numpy() - new.numpy()).max() > 0.1


def test_a_shared_gain_is_left_alone() -> None:
    model = decoder(Shape(layers=1)).graph
    node = next(n for n in model.graph if n.op_type == "RMSNormalization" and n.inputs[1].name == "layers.0.norm2")
    node.replace_input_with(1, model.graph.initializers["layers.0.norm1"])
    assert {place.divided[0] for place in places(model)} == {"layers.0.v.weight", "layers.0.up.weight"}


def test_an_output_that_is_read_elsewhere_is_left_alone() -> None:
    model = decoder(Shape(layers=1)).graph
    product = next(n for n in model.graph if n.op_type == "Mul" and n.inputs[1].producer().op_type == "MatMul")
    up = product.inputs[1]
    assert up is not None and ("layers.0.down.weight",) in _by_readers(model)
    extra = ir.Node("", "Neg", [up], name="extra")
    model.graph.insert_after(product, extra)
    assert ("layers.0.down.weight",) not in _by_readers(model)


def test_factors_undo_a_scaling_of_channels() -> None:
    random = np.random.default_rng(0)
    energy, magnitude = random.uniform(0.1, 10, 64), random.uniform(0.1, 10, 64)
    hidden = np.exp(random.normal(0, 0.5, 64))
    factors = best_factors(energy, magnitude)
    moved = best_factors(energy / hidden**2, magnitude * hidden**2)
    ratio = moved * hidden / factors
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)


def _bound(cost: np.ndarray, magnitude: np.ndarray, factors: np.ndarray, group: int) -> float:
    """What :func:`best_factors` minimises, with groups of ``group`` channels."""
    square = np.square(factors.astype(np.float64))
    terms = (magnitude * square).reshape(-1, group).sum(axis=1) * (cost / square).reshape(-1, group).sum(axis=1)
    return float(terms.sum())


@pytest.mark.parametrize("group", [32, 64, 192])
def test_no_other_factors_have_a_lower_bound(group: int) -> None:
    random = np.random.default_rng(1)
    energy, magnitude = random.uniform(0.01, 100, 192), random.uniform(0.01, 100, 192)
    factors = best_factors(energy, magnitude)
    least = _bound(energy, magnitude, factors, group)
    # Cauchy-Schwarz: per group the square of sum(sqrt(energy * magnitude)).
    expected = np.square(np.sqrt(energy * magnitude).reshape(-1, group).sum(axis=1)).sum()
    np.testing.assert_allclose(least, expected, rtol=1e-5)
    for _ in range(20):
        other = (factors * np.exp(random.normal(0, 0.1, 192))).astype(np.float32)
        assert _bound(energy, magnitude, other, group) > least


def test_dead_channels_get_finite_factors() -> None:
    energy, magnitude = np.ones(8), np.ones(8)
    energy[0], magnitude[1] = 0, 0
    assert np.isfinite(best_factors(energy, magnitude)).all()
    np.testing.assert_allclose(best_factors(np.zeros(8), np.zeros(8)), 1)


def test_heads_of_a_group_share_their_factors() -> None:
    model = decoder(GQA).graph
    place = _by_readers(model)[("layers.0.o.weight",)]
    energy = np.random.default_rng(2).uniform(1, 4, 96)
    factors = factors_of(model, place, energy)
    weight = model.graph.initializers["layers.0.o.weight"].const_value.numpy().astype(np.float64)
    square = np.square(weight).mean(axis=1)
    both = [(values[i] + values[i + 24], values) for i, values in ((0, energy), (0, square))]
    first = (both[0][0] / both[1][0]) ** 0.25
    second = ((energy[1] + energy[25]) / (square[1] + square[25])) ** 0.25
    np.testing.assert_allclose(factors[0] / factors[1], first / second, rtol=1e-5)
    wide = spread(place, factors)
    np.testing.assert_array_equal(wide.reshape(2, 2, 24)[:, 0], wide.reshape(2, 2, 24)[:, 1])
