"""Map queries, keys and values where the plan stores mapped keys (``k4rowm``) or values (``v4rowm``).

In: ``attention(q, k, v, ...)`` annotated with a scheme of mapped keys. Out: ``attention(head_map(q, matrices),
head_map(k, matrices, shift), v, ...)``: the same scores, up to a constant per query, from keys that are easy to
quantize (``bitwright.keymap``). Mapped values: ``head_map(attention(q, k, head_map(v, mixing), ...), mixing.T)``: the
weighted sums of mapped values are the mapped sums. Other attentions are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright import relax_ops
from bitwright.errors import InternalError
from bitwright.keymap import KeyMap, mixing
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
            if relax_ops.name_of(value) != "attention":
                return None
            keys, values = (CacheScheme.parse(str(value.attrs[f"{letter}_scheme"])).mapped for letter in "kv")
            if not keys and not values:
                return None
            layer = int(value.attrs["layer"])
            layers.add(layer)
            q, k, v, *rest = value.args
            q_heads, kv_heads = (int(value.attrs[f"{letter}_heads"]) for letter in ("q", "kv"))
            if keys:
                if layer not in self.maps:
                    raise InternalError(f"no key map was calibrated for layer {layer}", where="map_keys")
                maps = self.maps[layer]
                q = mapped(rewriter, q, q_heads, layer, {"query_map": maps.queries})
                k = mapped(rewriter, k, kv_heads, layer, {"key_map": maps.keys, "key_shift": maps.shift})
            mix = mixing(int(v.ty.shape.values[1]) // kv_heads).astype(np.float32)[None]
            if values:
                v = mapped(rewriter, v, kv_heads, layer, {"value_map": mix})
            attributes = {str(name): attribute for name, attribute in value.attrs.items()}
            y = rewriter.emit(relax_ops.call("attention", [q, k, v, *rest], **attributes))
            back = np.ascontiguousarray(mix.transpose(0, 2, 1))
            return mapped(rewriter, y, q_heads, layer, {"value_map_back": back}) if values else y

        module = rewrite(program.module, visit)
        done = replace(program, module=module, parameters=parameters)
        return with_event(done, self.name, layers=len(layers))
