"""Map queries and keys where the plan stores mapped keys (``k4rowm``).

In: ``attention(q, k, ...)`` annotated with a scheme of mapped keys. Out: ``attention(head_map(q, matrices),
head_map(k, matrices, shift), ...)``: the same scores, up to a constant per query, from keys that are easy to quantize
(``bitwright.keymap``). Other attentions are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright import relax_ops
from bitwright.errors import InternalError
from bitwright.keymap import KeyMap
from bitwright.passes.base import rewrite, with_event
from bitwright.program import Parameter, Program
from bitwright.scheme import CacheScheme


@dataclass(frozen=True)
class MapKeys:
    """See the module's description.

    Attributes:
        maps: by layer, for every layer whose keys the plan stores mapped.
    """

    maps: Mapping[int, KeyMap] = field(default_factory=dict)
    name: str = "map_keys"

    def __call__(self, program: Program) -> Program:
        parameters = dict(program.parameters)
        layers: set[int] = set()

        def mapped(rewriter: Any, x: Any, heads: int, layer: int, arrays: Mapping[str, npt.NDArray[Any]]) -> Any:
            operands = [x]
            for name, array in arrays.items():
                full = f"layer.{layer}.{name}"
                parameters[full] = Parameter(full, array.shape, "float32", lambda a=array: np.ascontiguousarray(a))  # type: ignore[misc]  # a default binds it now
                operands.append(rewriter.parameter(full, array.shape, "float32"))
            return rewriter.emit(relax_ops.call("head_map", operands, heads=heads))

        def visit(rewriter: Any, _variable: Any, value: Any) -> Any:
            if relax_ops.name_of(value) != "attention" or not CacheScheme.parse(str(value.attrs["k_scheme"])).mapped:
                return None
            layer = int(value.attrs["layer"])
            if layer not in self.maps:
                raise InternalError(f"no key map was calibrated for layer {layer}", where="map_keys")
            layers.add(layer)
            maps = self.maps[layer]
            q, k, *rest = value.args
            heads = {letter: int(value.attrs[f"{letter}_heads"]) for letter in ("q", "kv")}
            q = mapped(rewriter, q, heads["q"], layer, {"query_map": maps.queries})
            k = mapped(rewriter, k, heads["kv"], layer, {"key_map": maps.keys, "key_shift": maps.shift})
            attributes = {str(name): attribute for name, attribute in value.attrs.items()}
            return relax_ops.call("attention", [q, k, *rest], **attributes)

        module = rewrite(program.module, visit)
        done = replace(program, module=module, parameters=parameters)
        return with_event(done, self.name, layers=len(layers))
