"""Find a model's blocks: stretches of the graph, one behind the other, that pass on a single value.

Of the values that depend on the token ids, one that every path from the ids to the model's output runs through divides
the graph: the residual stream behind each addition, and what a table or the last norm computes. (Positions and caches
are graph inputs, which every block may read.) A block begins before each attention.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitwright.frontend.calibrate.products import products
from bitwright.frontend.interpreter.tail import lm_head_input

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Block:
    """A stretch of the graph.

    Attributes:
        source: name of the value it reads; None: the token ids.
        output: name of the value it computes, the source of the block behind it.
        weights: names in the IR of the matrices in it that are asked for and that no block before it reads.
        shared: names of those that a block before it reads as well.
    """

    source: str | None
    output: str
    weights: tuple[str, ...]
    shared: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Segment:
    """What lies between two neighbouring values that divide the graph."""

    source: str | None
    output: str
    weights: tuple[str, ...]
    attends: bool


def blocks(model: ir.Model, output: str, weights: Collection[str]) -> tuple[Block, ...]:
    """The blocks from the first that reads one of ``weights`` to the last, without an lm_head.

    Args:
        output: the graph output that all of it is computed for.
        weights: names in the IR of matrices; those that no product reads are in no block.
    """
    segments = list(_segments(model, output, weights))
    while segments and not segments[-1].weights:
        segments.pop()
    groups: list[list[_Segment]] = []
    for segment in segments:
        if groups and not segment.attends:
            groups[-1].append(segment)
        elif groups or segment.weights:
            groups.append([segment])
    found: list[Block] = []
    seen: set[str] = set()
    for group in groups:
        names = dict.fromkeys(name for part in group for name in part.weights)
        own, shared = (tuple(name for name in names if (name in seen) is known) for known in (False, True))
        found.append(Block(group[0].source, group[-1].output, own, shared))
        seen.update(own)
    return tuple(found)


def _segments(model: ir.Model, output: str, weights: Collection[str]) -> Iterator[_Segment]:
    nodes = _between(model, output)
    known = set(nodes)
    place = {value: i for i, node in enumerate(nodes) for value in node.outputs}
    head = next((lm_head_input(value) for value in model.graph.outputs if value.name == output), None)
    of_output = {p.output: p.weight for p in products(model) if p.weight in weights and p.activation != head}
    reach, start = 0, 0
    last_reader = [0] * len(nodes)
    for i, node in enumerate(nodes):
        for value in node.inputs:
            if value in place:
                last_reader[place[value]] = i
            elif value is not None and value.name == "input_ids":
                reach = i
    source = None
    for i, node in enumerate(nodes):
        read = [v for v in node.outputs if v.name == output or any(use.node in known for use in v.uses())]
        if reach <= i and len(read) == 1:
            part = nodes[start : i + 1]
            names = tuple(of_output[str(v.name)] for n in part for v in n.outputs if v.name in of_output)
            yield _Segment(source, str(read[0].name), names, any(n.op_type == "Attention" for n in part))
            source, start = str(read[0].name), i + 1
        reach = max(reach, last_reader[i])


def _between(model: ir.Model, output: str) -> list[ir.Node]:
    """The nodes on the paths from the token ids to ``output``, in the graph's order."""
    varying: set[ir.Value] = {value for value in model.graph.inputs if value.name == "input_ids"}
    forward = []
    for node in model.graph:
        if any(value in varying for value in node.inputs):
            varying.update(node.outputs)
            forward.append(node)
    needed = {value for value in model.graph.outputs if value.name == output}
    result = []
    for node in reversed(forward):
        if any(value in needed for value in node.outputs):
            needed.update(value for value in node.inputs if value is not None)
            result.append(node)
    return result[::-1]
