"""Raw exports and canonical graphs of the zoo, made once per test run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import onnx_ir as ir
import pytest

from bitwright.frontend.model import ImportedModel
from tests.frontend import zoo


def import_zoo(name: str, opset: int = 23, attention: str = "sdpa") -> ImportedModel:
    """The canonical form of a zoo model, exported at ``opset`` with ``sdpa`` or ``eager`` attention."""
    from bitwright.frontend.assemble import Source, assemble
    from bitwright.frontend.export import export_decoder, export_encoder

    model: Any = zoo.build(name)
    before = model.config._attn_implementation
    model.set_attn_implementation(attention)
    try:
        export = export_decoder if zoo.ENTRIES[name].kind == "decoder" else export_encoder
        raw = _as_opset_17(export(model, 18)) if opset == 17 else export(model, opset)
    finally:
        model.set_attn_implementation(before)
    return assemble(Source(raw, name, zoo.CONTEXT))


def _as_opset_17(model: ir.Model) -> ir.Model:
    """An opset-18 export as opset 17 writes it: torch no longer does. Of its ops only ReduceMean differs."""
    for node in model.graph:
        if node.op_type == "ReduceMean":
            node.resize_inputs(1)
            node.attributes.pop("noop_with_empty_axes", None)
            node.attributes["axes"] = ir.AttrInt64s("axes", [-1])
    model.opset_imports[""] = 17
    onnx.checker.check_model(ir.to_proto(model))
    return model


@pytest.fixture(scope="session")
def imported() -> Callable[..., ImportedModel]:
    """``imported(name, opset=23, attention="sdpa")``, cached."""
    made: dict[tuple[Any, ...], ImportedModel] = {}

    def get(*key: Any) -> ImportedModel:
        if key not in made:
            made[key] = import_zoo(*key)
        return made[key]

    return get
