"""Replace float weights by packed ones.

In: annotated ``linear`` and ``embedding`` calls. Out: ``packed_linear`` and ``packed_embedding`` calls on the
packed tensors
(``<weight>.codes``, ``.scales``, ``.zeros``, or ``.weights`` for float schemes), with ``quantize_activation`` in
front of
layers with int8 activations, once per activation and group size. Tensors are quantized when they are loaded. A
table that is
also the lm_head is packed once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright import relax_ops
from bitwright.codegen.isa import Isa
from bitwright.codegen.layout import PackedLayout, packed_layout
from bitwright.codegen.packing import pack, pack_float
from bitwright.errors import BitwrightError
from bitwright.passes.base import functions, rewrite
from bitwright.passes.quantizers.matrix import Quantizer
from bitwright.passes.quantizers.sites import SiteQuantizers
from bitwright.program import Parameter, Program
from bitwright.scheme import LinearScheme


@dataclass(frozen=True)
class Quantize:
    """See the module's description.

    Attributes:
        isa: decides the lanes of the packed layout.
        quantizer_of: what turns a parameter, a float matrix, into codes.
    """

    isa: Isa
    quantizer_of: Callable[[Parameter], Quantizer] = SiteQuantizers()  # noqa: RUF009 - a frozen value
    name: str = "quantize"

    def __call__(self, program: Program) -> Program:
        parameters = dict(program.parameters)
        packed: dict[tuple[str, str], _PackedMatrix] = {}

        def tensors(rewriter: Any, call: Any, scheme: LinearScheme) -> tuple[list[Any], PackedLayout]:
            source = parameters[call.args[1].name]
            key = (source.name, scheme.weight.name)
            if key not in packed:
                packed[key] = _PackedMatrix(source, self._layout(source, scheme), self.quantizer_of(source))
                for parameter in packed[key].parameters():
                    parameters[parameter.name] = parameter
            matrix = packed[key]
            return [rewriter.parameter(p.name, p.shape, p.dtype) for p in matrix.parameters()], matrix.layout

        def visit(rewriter: Any, _variable: Any, value: Any) -> Any:
            kind = relax_ops.name_of(value)
            if kind not in ("linear", "embedding"):
                return None
            scheme = LinearScheme.parse(str(value.attrs["scheme"]))
            arrays, layout = tensors(rewriter, value, scheme)
            common = {"outputs": layout.outputs, "inputs": layout.inputs, "scheme": scheme.name}
            common["site"] = str(value.attrs["site"])
            if kind == "embedding":
                return relax_ops.call("packed_embedding", [value.args[0], *arrays], **common)
            bias = list(value.args[2:])
            inputs = _activations(rewriter, value.args[0], scheme, layout)
            return relax_ops.call("packed_linear", [*inputs, *arrays, *bias], has_bias=len(bias), **common)

        module = rewrite(program.module, visit)
        used = {v.name for _, function in functions(module) for v in function.params}
        return replace(program, module=module, parameters={k: v for k, v in parameters.items() if k in used})

    def _layout(self, source: Parameter, scheme: LinearScheme) -> PackedLayout:
        outputs, inputs = source.shape
        return packed_layout(outputs, inputs, scheme.weight, self.isa.lanes)


def _activations(rewriter: Any, x: Any, scheme: LinearScheme, layout: PackedLayout) -> list[Any]:
    if scheme.activation.bits == 16:
        return [x]
    key = ("quantized", x, layout.group)
    if key not in rewriter.memo:
        from tvm import relax

        group = layout.weight.group
        whole = rewriter.emit(relax_ops.call("quantize_activation", [x], group=group))
        rewriter.memo[key] = [rewriter.emit(relax.TupleGetItem(whole, i)) for i in range(3)]
    return list(rewriter.memo[key])


@dataclass
class _PackedMatrix:
    """One matrix whose packed tensors are made together, when the first is asked for, and given away one by one."""

    source: Parameter
    layout: PackedLayout
    quantizer: Quantizer
    _ready: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def parameters(self) -> list[Parameter]:
        return [
            Parameter(f"{self.source.name}.{t.name}", t.shape, t.dtype, self._loader(t.name))
            for t in self.layout.tensors
        ]

    def _loader(self, name: str) -> Callable[[], npt.NDArray[Any]]:
        return lambda: self._take(name)

    def _take(self, name: str) -> npt.NDArray[Any]:
        if name not in self._ready:
            self._ready = self._make()
        return self._ready.pop(name)

    def _make(self) -> dict[str, npt.NDArray[Any]]:
        weights = np.asarray(self.source.load(), dtype=np.float32)
        try:
            if self.layout.weight.is_float:
                return pack_float(weights, self.layout)
            quantized = self.quantizer(weights, self.layout.weight)
        except BitwrightError as error:
            error.where = f"weight {self.source.name}"
            raise
        return pack(quantized.codes, quantized.scales, quantized.zeros, self.layout)
