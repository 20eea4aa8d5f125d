"""Blocks are found by structure: they hold one attention each and pass on a single value."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from bitwright.frontend.calibrate.products import products
from bitwright.frontend.interpreter import Interpreter
from bitwright.frontend.model import ImportedModel
from bitwright.frontend.reconstruct.blocks import Block, blocks
from tests import unusual_models
from tests.canonical_model import Shape, decoder

torch = pytest.importorskip("torch")


def found(model: ImportedModel, output: str = "logits") -> tuple[Block, ...]:
    return blocks(model.graph, output, {product.weight for product in products(model.graph)})


@pytest.mark.parametrize("tied", [True, False])
def test_a_block_is_a_layer_and_the_lm_head_is_in_none(tied: bool) -> None:
    model = decoder(Shape(layers=3, tied=tied))
    assert [block.weights for block in found(model)] == [
        tuple(f"layers.{i}.{part}.weight.T" for part in ("q", "k", "v", "o", "gate", "up", "down")) for i in range(3)
    ]


def test_blocks_follow_each_other() -> None:
    made = found(decoder(Shape(layers=3)))
    assert [block.source for block in made[1:]] == [block.output for block in made[:-1]]
    assert made[0].source == "Gather_0_0"


@pytest.mark.parametrize("model", [decoder, *unusual_models.DECODERS, unusual_models.encoder])
def test_a_block_computes_its_output_from_its_source_alone(model: Callable[[], ImportedModel]) -> None:
    made = model()
    interpreter = Interpreter(made.graph)
    feeds = interpreter.feeds(np.arange(12))
    other = interpreter.feeds(np.arange(12) + 20)
    output = "logits" if made.kind == "decoder" else "hidden"
    assert found(made, output)
    with torch.no_grad():
        for block in found(made, output):
            assert block.source is not None
            values = interpreter.run(feeds, (block.source, block.output))
            alone = interpreter.run(other, (block.output,), {block.source: values[block.source]})
            torch.testing.assert_close(alone[block.output], values[block.output])


@pytest.mark.parametrize("model", unusual_models.DECODERS)
def test_every_matrix_is_in_one_block(model: Callable[[], ImportedModel]) -> None:
    made = model()
    head = products(made.graph)[-1].weight
    names = [name for block in found(made) for name in block.weights]
    assert sorted(names) == sorted({product.weight for product in products(made.graph)} - {head})


def test_a_matrix_of_several_blocks_belongs_to_the_first() -> None:
    first, second, third = found(unusual_models.looped_layer())
    assert first.weights and not first.shared
    assert second.weights == third.weights == ()
    assert second.shared == third.shared == first.weights


def test_blocks_before_and_behind_the_matrices_that_are_asked_for_are_left_out() -> None:
    model = decoder(Shape(layers=4))
    made = blocks(model.graph, "logits", {"layers.1.up.weight.T", "layers.2.q.weight.T"})
    assert [block.weights for block in made] == [("layers.1.up.weight.T",), ("layers.2.q.weight.T",)]
    assert blocks(model.graph, "logits", set()) == ()
