"""Map queries, keys and values where the plan stores mapped keys (``k4rowm``) or values (``v4rowm``).

In: ``attention(q, k, v, ...)`` annotated with a scheme of mapped keys. Out: ``attention(head_map(q, matrices),
head_map(k, matrices, shift), v, ...)``: the same scores, up to a constant per query, from keys that are easy to
quantize (``bitwright.keymap``). Mapped values: ``head_map(attention(q, k, head_map(v, matrices), ...), inverses)``: the
weighted means of mapped values are the mapped means; unless the weights before and behind do that already. Other
attentions are left alone. Matrices are stored in half precision, shifts in single.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright import relax_ops
from bitwright.cachemaps import KEY_TENSORS, VALUE_TENSORS, CacheMaps
from bitwright.errors import InternalError
from bitwright.keymap import HeadMap
from bitwright.passes.base import rewrite, with_event
from bitwright.program import Parameter, Program
from bitwright.scheme import CacheScheme


@dataclass(frozen=True)
class MapKeys:
    """See the module's description.

    Attributes:
        maps: of every cache that the plan stores mapped.
    """

    maps: CacheMaps = CacheMaps()  # noqa: RUF009 - a frozen value
    name: str = "map_keys"

    def __call__(self, program: Program) -> Program:
        parameters = dict(program.parameters)
        layers: set[int] = set()

        def mapped(rewriter: Any, x: Any, heads: int, layer: int, arrays: Mapping[str, npt.NDArray[Any]]) -> Any:
            operands = [x]
            for name, array in arrays.items():
                full, dtype = f"layer.{layer}.{name}", "float16" if array.ndim == 3 else "float32"
                stored = np.ascontiguousarray(array, dtype)
                parameters[full] = Parameter(full, stored.shape, dtype, lambda a=stored: a)  # type: ignore[misc]  # a default binds it now
                operands.append(rewriter.parameter(full, stored.shape, dtype))
            return rewriter.emit(relax_ops.call("head_map", operands, heads=heads))

        def visit(rewriter: Any, _variable: Any, value: Any) -> Any:
            if relax_ops.name_of(value) != "attention":
                return None
            keys, values = (CacheScheme.parse(str(value.attrs[f"{letter}_scheme"])) for letter in "kv")
            layer = int(value.attrs["layer"])
            maps_values = values.mapped and layer not in self.maps.folded
            if not keys.mapped and not maps_values:
                return None
            layers.add(layer)
            q, k, v, *rest = value.args
            q_heads, kv_heads = (int(value.attrs[f"{letter}_heads"]) for letter in ("q", "kv"))
            if keys.mapped:
                maps = self._of(f"layer.{layer}.k_cache", keys)
                query, key, shift = KEY_TENSORS
                q = mapped(rewriter, q, q_heads, layer, {query: maps.inverse.transpose(0, 2, 1)})
                k = mapped(rewriter, k, kv_heads, layer, {key: maps.forward, shift: maps.shift})
            if maps_values:
                maps = self._of(f"layer.{layer}.v_cache", values)
                v = mapped(rewriter, v, kv_heads, layer, {VALUE_TENSORS[0]: maps.forward})
            attributes = {str(name): attribute for name, attribute in value.attrs.items()}
            y = rewriter.emit(relax_ops.call("attention", [q, k, v, *rest], **attributes))
            return mapped(rewriter, y, q_heads, layer, {VALUE_TENSORS[1]: maps.inverse}) if maps_values else y

        module = rewrite(program.module, visit)
        done = replace(program, module=module, parameters=parameters)
        return with_event(done, self.name, layers=len(layers))

    def _of(self, site: str, scheme: CacheScheme) -> HeadMap:
        found = self.maps.of(site)
        if found is None:
            raise InternalError(f"no map was calibrated for {site}", where=self.name)
        return found.mixed(bool(scheme.low)).halves(site)
