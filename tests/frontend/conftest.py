"""Raw exports and canonical graphs of the zoo, made once per test run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
        raw = (export_decoder if zoo.ENTRIES[name].kind == "decoder" else export_encoder)(model, opset)
    finally:
        model.set_attn_implementation(before)
    return assemble(Source(raw, name, zoo.CONTEXT))


@pytest.fixture(scope="session")
def imported() -> Callable[..., ImportedModel]:
    """``imported(name, opset=23, attention="sdpa")``, cached."""
    made: dict[tuple[Any, ...], ImportedModel] = {}

    def get(*key: Any) -> ImportedModel:
        if key not in made:
            made[key] = import_zoo(*key)
        return made[key]

    return get
