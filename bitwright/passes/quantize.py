"""Replace float weights by packed ones.

In: annotated ``linear`` and ``embedding`` calls. Out: ``packed_linear`` and ``packed_embedding`` calls on the packed
tensors (``<weight>.codes``, ``.scales``, ``.zeros``, ``.codebook``, or ``.weights`` for float schemes;
``<weight>.<first row>.codes`` for each run of a mixed scheme), with ``quantize_activation`` in front of packed layers,
once per activation, width and group size. Tensors are quantized when they are loaded. A table that is also the lm_head
is packed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright import relax_ops
from bitwright.codegen.isa import Isa
from bitwright.codegen.layout import PackedLayout
from bitwright.codegen.linear import LinearSpec, linear_spec
from bitwright.codegen.packing import pack, pack_float
from bitwright.codegen.quantized_rows import QuantizedRows
from bitwright.errors import BitwrightError
from bitwright.passes.base import functions, rewrite
from bitwright.passes.quantizers.matrix import Quantizer, RunRows
from bitwright.passes.quantizers.sites import SiteQuantizers
from bitwright.program import Parameter, Program
from bitwright.runs import parse_weights


@dataclass(frozen=True)
class Quantize:
    """See the module's description.

    Attributes:
        isa: decides the lanes of the packed layout.
        quantizer_of: what turns a parameter, a float matrix, or a run of its rows, into codes.
    """

    isa: Isa
    quantizer_of: Callable[[Parameter], Quantizer] = SiteQuantizers()  # noqa: RUF009 - a frozen value
    name: str = "quantize"

    def __call__(self, program: Program) -> Program:
        parameters = dict(program.parameters)
        packed: dict[tuple[str, str], _PackedMatrix] = {}

        def tensors(rewriter: Any, source: Parameter, parts: tuple[LinearSpec, ...]) -> list[Any]:
            key = (source.name, "+".join(f"{part.scheme.weight}:{part.outputs}" for part in parts))
            if key not in packed:
                layouts = tuple(part.layout(self.isa) for part in parts)
                packed[key] = _PackedMatrix(source, layouts, self.quantizer_of(source))
                for parameter in packed[key].parameters():
                    parameters[parameter.name] = parameter
            return [rewriter.parameter(p.name, p.shape, p.dtype) for p in packed[key].parameters()]

        def visit(rewriter: Any, _variable: Any, value: Any) -> Any:
            kind = relax_ops.name_of(value)
            if kind not in ("linear", "embedding"):
                return None
            source = parameters[value.args[1].name]
            outputs, inputs = source.shape
            scheme = parse_weights(str(value.attrs["scheme"]))
            parts = linear_spec(scheme, outputs, inputs).parts
            arrays = tensors(rewriter, source, parts)
            common = {"outputs": outputs, "inputs": inputs, "scheme": scheme.name, "site": str(value.attrs["site"])}
            if kind == "embedding":
                rank = list(value.args[2:])
                return relax_ops.call("packed_embedding", [value.args[0], *arrays, *rank], ranked=len(rank), **common)
            bias = list(value.args[2:])
            activations = _activations(rewriter, value.args[0], parts)
            return relax_ops.call("packed_linear", [*activations, *arrays, *bias], has_bias=len(bias), **common)

        module = rewrite(program.module, visit)
        used = {v.name for _, function in functions(module) for v in function.params}
        return replace(program, module=module, parameters={k: v for k, v in parameters.items() if k in used})


def _activations(rewriter: Any, x: Any, parts: tuple[LinearSpec, ...]) -> list[Any]:
    """What the parts read of ``x``, each once, in the order in which a kernel takes them."""
    return [
        value
        for quantized in dict.fromkeys(_quantization(part) for part in parts)
        for value in ([x] if quantized is None else _quantized(rewriter, x, quantized))
    ]


def _quantization(part: LinearSpec) -> QuantizedRows | None:
    """How a part reads its input; None: as floats."""
    if not part.scheme.terms:
        return None
    group = part.scheme.weight.group
    return QuantizedRows(0 if group == part.inputs else group, part.scheme.terms)


def _quantized(rewriter: Any, x: Any, quantized: QuantizedRows) -> list[Any]:
    key = ("quantized", x, quantized)
    if key not in rewriter.memo:
        from tvm import relax

        call = relax_ops.call("quantize_activation", [x], group=quantized.group, terms=quantized.terms)
        whole = rewriter.emit(call)
        rewriter.memo[key] = [rewriter.emit(relax.TupleGetItem(whole, i)) for i in range(3)]
    return list(rewriter.memo[key])


@dataclass
class _PackedMatrix:
    """One matrix whose packed tensors are made together, when the first is asked for, and given away one by one.

    Attributes:
        layouts: of each run of rows.
    """

    source: Parameter
    layouts: tuple[PackedLayout, ...]
    quantizer: Quantizer
    _ready: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def parameters(self) -> list[Parameter]:
        return [
            Parameter(name, tensor.shape, tensor.dtype, self._loader(name))
            for first, layout in self._runs()
            for tensor in layout.tensors
            for name in [self._name(first, tensor.name)]
        ]

    def _runs(self) -> Iterator[tuple[int, PackedLayout]]:
        """First row and layout of each run."""
        first = 0
        for layout in self.layouts:
            yield first, layout
            first += layout.outputs

    def _name(self, first: int, tensor: str) -> str:
        run = f".{first}" if len(self.layouts) > 1 else ""
        return f"{self.source.name}{run}.{tensor}"

    def _loader(self, name: str) -> Callable[[], npt.NDArray[Any]]:
        return lambda: self._take(name)

    def _take(self, name: str) -> npt.NDArray[Any]:
        if name not in self._ready:
            self._ready = self._make()
        return self._ready.pop(name)

    def _make(self) -> dict[str, npt.NDArray[Any]]:
        made = {}
        for (first, layout), quantized in zip(self._runs(), self._quantized(), strict=True):
            if isinstance(quantized, np.ndarray):
                tensors = pack_float(quantized, layout)
            else:
                tensors = pack(quantized.codes, quantized.scales, quantized.zeros, layout, quantized.codebook)
            made.update({self._name(first, name): array for name, array in tensors.items()})
        return made

    def _quantized(self) -> list[RunRows]:
        """What each run packs: floats as they are, or codes. The weights are free again before codes are packed."""
        weights = np.asarray(self.source.load(), dtype=np.float32)
        return [self._run(weights[first : first + layout.outputs], layout, first) for first, layout in self._runs()]

    def _run(self, weights: npt.NDArray[np.float32], layout: PackedLayout, first: int) -> RunRows:
        try:
            return weights if layout.weight.is_float else self.quantizer(weights, layout.weight, first)
        except BitwrightError as error:
            error.where = f"weight {self.source.name}"
            raise
