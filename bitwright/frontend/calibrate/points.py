"""Where in the graph the values of a site are: what a linear layer reads and computes, what a cache holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitwright.frontend.calibrate.products import Product, products
from bitwright.frontend.graph import token_ids
from bitwright.frontend.neighbours import constant_shape
from bitwright.frontend.roles import Role
from bitwright.program import TOKEN_RANK

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Points:
    """Names of graph values.

    Attributes:
        products: weight parameter name to the product of that matrix; the last where there are several.
        look_ups: name of a table's parameter to the value of looked-up rows.
        tokens: tables among them that have a row per token; others have one per position.
        caches: of each attention, in graph order, the keys and the values that are cached.
        rank: name of the tensor that holds each token's row of the table; None: rows are in the order of tokens.
    """

    products: Mapping[str, Product]
    look_ups: Mapping[str, str]
    tokens: frozenset[str]
    caches: tuple[tuple[str, str], ...]
    rank: str | None = None

    @classmethod
    def of(cls, model: ir.Model) -> Points:
        look_ups: dict[str, str] = {}
        tokens = set()
        caches = []
        for node in model.graph:
            values = [value.name if value is not None else None for value in node.inputs]
            if node.op_type == "Gather" and len(constant_shape(node.inputs[0])) == 2:
                look_ups[str(values[0])] = str(node.outputs[0].name)
                ids = token_ids(node.inputs[1])
                tokens |= {str(values[0])} if ids is not None and ids.name == Role.IDS.value else set()
            if node.op_type == "Attention":
                caches.append((str(values[1]), str(values[2])))
        rank = TOKEN_RANK if TOKEN_RANK in model.graph.initializers else None
        return cls(
            {product.weight: product for product in products(model)}, look_ups, frozenset(tokens), tuple(caches), rank
        )
