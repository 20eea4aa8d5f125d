"""Everything that depends on lengths and positions only is replaced by what it means.

In: any graph with dynamic shapes. Out: a graph in which every input of a node that handles token data is

* token data, a weight, or a small constant;
* a row of a constant table picked by position: ``Reshape(Gather(table, position_ids))``;
* ``bitwright::Mask`` (attributes ``form``, ``causal``, ``window``; see ``mask.py``), consumed by the attention
  rewrites.

Shapes of ``Reshape`` are constants with at most one -1, ``Slice`` and ``Expand`` have constant operands and are
dropped where they do nothing. How an exporter spells masks, rotary angles and shape arithmetic never matters: they are
evaluated (``probe.py``).
"""

from __future__ import annotations

import onnx_ir as ir

from bitwright.frontend.graph import DECODED_LIMIT, sweep
from bitwright.frontend.lift.meaning import Meaning
from bitwright.frontend.lift.operands import operand_meaning
from bitwright.frontend.lift.survey import Survey
from bitwright.frontend.lift.values import value_meaning
from bitwright.frontend.roles import Role, Roles

RESIZING = ("Reshape", "Expand", "Slice")


def lift(model: ir.Model, roles: Roles, context: int) -> None:
    """Replace structural values in place; ``context`` positions get tables.

    Raises:
        UnsupportedError: naming the node that reads a structural value of unknown meaning.
    """
    survey = Survey.of(model, roles, context)
    edges = _frontier(survey)
    _evaluate_at_once(survey, edges)
    known: dict[ir.Value, Meaning] = {}
    edits: list[tuple[ir.Node, int, Meaning]] = []
    for node, index in edges:
        meaning = operand_meaning(survey, node, index)
        if meaning is None:
            value = node.inputs[index]
            assert value is not None  # _frontier
            if value not in known:
                known[value] = value_meaning(survey, node, index)
            meaning = known[value]
        edits.append((node, index, meaning))
    positions = _positions_input(model, roles)
    for node, index, meaning in edits:  # only now: an edited graph cannot be probed
        if node.graph is not None:
            meaning.install(survey, node, index, positions)
    sweep(model)


def _frontier(survey: Survey) -> list[tuple[ir.Node, int]]:
    """(node, input index) wherever a node that handles token data reads a computed structural value or a size."""
    weights = _weight_arithmetic(survey)
    inputs = {survey.roles.get(Role.POSITIONS), survey.roles.get(Role.MASK)}
    edges = []
    for node in survey.model.graph:
        if not any(v in survey.dependence.data for v in node.outputs):
            continue
        for index, value in enumerate(node.inputs):
            if value is None or value in survey.dependence.data or value in weights:
                continue
            if node.op_type == "RotaryEmbedding" and value in inputs:
                continue  # canonical already
            if value.producer() is not None or value in inputs or node.op_type in RESIZING:
                edges.append((node, index))
    return edges


def _weight_arithmetic(survey: Survey) -> set[ir.Value]:
    """Values computed from weight matrices alone, such as transposes: left to the rewrites that fold them lazily."""
    found = {
        value
        for value in survey.model.graph.initializers.values()
        if value.const_value is not None and value.const_value.size > DECODED_LIMIT and len(value.const_value.shape) > 1
    }
    for node in survey.model.graph:
        if all(v in survey.dependence.static for v in node.outputs) and any(v in found for v in node.inputs):
            found.update(node.outputs)
    return found


def _evaluate_at_once(survey: Survey, edges: list[tuple[ir.Node, int]]) -> None:
    """Fill the probes in one walk over the graph each, instead of one walk per value."""
    values = [v for node, index in edges if (v := node.inputs[index]) is not None]
    moving = [v for v in values if v not in survey.dependence.static]
    resized = {node for node, _ in edges if node.op_type in RESIZING}
    shapes = [v for node in resized for v in (node.inputs[0], node.outputs[0]) if v is not None]
    for at in survey.points:
        survey.probe(*at).values(values if at == survey.points[0] else moving)
        survey.probe(*at).shapes(shapes)


def _positions_input(model: ir.Model, roles: Roles) -> ir.Value:
    """The input ``position_ids``; added where the graph computes positions itself."""
    found = roles.get(Role.POSITIONS)
    if found is not None:
        return found
    value = ir.Value(name=Role.POSITIONS.value, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1, "n"]))
    model.graph.inputs.append(value)
    return value
