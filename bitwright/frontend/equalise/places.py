"""Places where a factor per channel can move from one tensor to others without changing what the model computes.

* The gain (and bias) of a normalisation, and the linear layers that alone read its output.
* A linear layer whose output, as one factor of a product, is read by linear layers alone: up and down of a gated
  feed-forward network. The product is linear in it.
* The linear layer that makes V of an attention, and those that alone read the attention's output, which is a weighted
  mean of V: one factor per channel of a K/V head serves all query heads of its group.

A tensor that anything else reads (a bias or gain that two nodes share, a table that is also looked up) is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from bitwright.frontend.graph import attribute
from bitwright.frontend.neighbours import constant_shape, linear, own
from bitwright.frontend.neighbours import readers as readers_of


@dataclass(frozen=True)
class Place:
    """Factors s: ``divided`` tensors are divided by s along their last axis, ``readers`` multiplied along their first.

    Attributes:
        activation: the graph value that the readers multiply; it is divided by s, too.
        divided: names of initializers: [channels], or a weight [inputs, channels].
        readers: names of weights [inputs, outputs].
        channels: how many factors there are.
        heads: (K/V heads, query heads of each, elements): the factors [K/V heads * elements] are repeated for every
            query head on the readers' side; (1, 1, channels) where nothing repeats.
    """

    activation: str
    divided: tuple[str, ...]
    readers: tuple[str, ...]
    channels: int
    heads: tuple[int, int, int]


def places(model: ir.Model) -> tuple[Place, ...]:
    """All places of a canonical graph, in its order; none shares a tensor's axis with another."""
    return tuple(place for node in model.graph for place in _places(node))


def _places(node: ir.Node) -> Iterator[Place]:
    output = node.outputs[0]
    readers = readers_of(output)
    if not readers:
        return
    width = constant_shape(readers[0])[0]
    if node.op_type in ("RMSNormalization", "LayerNormalization") and not node.domain:
        divided = own(list(node.inputs[1:]))
        channels, heads = width, (1, 1, width)
    elif node.op_type == "Mul" and not node.domain:
        divided = next((found for factor in reversed(node.inputs) if (found := linear(factor, width))), None)
        channels, heads = width, (1, 1, width)
    elif node.op_type == "Attention":
        kv_heads = int(attribute(node, "kv_num_heads", 0))
        group = int(attribute(node, "q_num_heads", 0)) // kv_heads
        channels = width // group
        heads = (kv_heads, group, channels // kv_heads)
        divided = linear(node.inputs[2], channels)
    else:
        return
    if divided:
        yield Place(str(output.name), divided, tuple(str(weight.name) for weight in readers), channels, heads)
