"""bitwright's operators in Relax: what import and passes speak before lowering turns them into TensorIR calls.

Every operator is pure in Relax's eyes; those that write a cache are kept in order by the data flow lowering gives them.

===================== =============================================== ===========================================
operator              arguments                                       attributes
===================== =============================================== ===========================================
linear                x [n, K], weight [N, K] [, bias [N]]            site, scheme
embedding             ids [n], table [V, K] [, rank i32 [V]]          site, scheme
head_map              x [n, H*D], matrices [G, D, D] [, shift]        heads
rotate                x [n, W]                                        blocks, order, power, transposed
rope                  x [n, H*D], cos [P, R/2], sin, positions [n]    heads, rotary_dim, interleaved
attention             q, k, v, k_cache, v_cache, position (shape)     q_heads, kv_heads, scale, softcap, window,
                                                                      layer, k_scheme, v_scheme
attention_full        q, k, v                                         q_heads, kv_heads, scale, softcap
take_last             x [n, W] -> [1, W]
put_in_order          x [n, W], places i32 [W]
quantize_activation   x [n, K] -> int8 [n, T*K], f32, i32 [n, G]      group (0: the whole row), terms T
packed_linear         inputs, packed tensors [, bias] [, residual]    outputs, inputs, scheme, has_bias, has_residual
packed_embedding      ids [n], packed tensors [, rank i32 [V]]        outputs, inputs, scheme, ranked
glu                   x [n, 2F] or gate, up [n, F]                    activation (silu, gelu, gelu_tanh)
add_rms_norm          a, b [n, W], gain -> (a + b, norm)              epsilon
rotate_quantized      as rotate -> as quantize_activation             as rotate; group, terms
glu_quantized         as glu -> as quantize_activation                activation, group, terms
norm_quantized        x, gain [, bias] -> as quantize_activation      kind (rms, layer), epsilon, group, terms
add_norm_quantized    a, b, gain -> a + b, as quantize_activation     epsilon, group, terms
packed_glu            as packed_linear -> as quantize_activation      those of packed_linear and glu_quantized
===================== =============================================== ===========================================

A matrix may be cut into runs of rows with schemes of their own: its ``scheme`` then lists them with their rows
(``u4g32a8:384+u3g32a8:192``), and the packed operators take, in this order, every kind of activation that a run reads,
once, the packed tensors of each run, and the bias.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tvm
import tvm.ir.op as tvm_op
from tvm import relax

PREFIX = "bitwright."


def _tensor(shape: Sequence[Any], dtype: str) -> Any:
    return relax.TensorType(list(shape), dtype)


def _shape(expr: Any) -> list[Any]:
    return list(expr.ty.shape.values)


def _infer_linear(call: Any, _context: Any) -> Any:
    return _tensor([*_shape(call.args[0])[:-1], _shape(call.args[1])[0]], "float32")


def _infer_embedding(call: Any, _context: Any) -> Any:
    return _tensor([_shape(call.args[0])[0], _shape(call.args[1])[1]], "float32")


def _infer_same(call: Any, _context: Any) -> Any:
    return call.args[0].ty


def _infer_attention(call: Any, _context: Any) -> Any:
    rows = _shape(call.args[0])[0]
    value_width = int(_shape(call.args[2])[1])
    return _tensor([rows, int(call.attrs["q_heads"]) * (value_width // int(call.attrs["kv_heads"]))], "float32")


def _infer_take_last(call: Any, _context: Any) -> Any:
    return _tensor([1, *_shape(call.args[0])[1:]], str(call.args[0].ty.dtype))


def _infer_packed_linear(call: Any, _context: Any) -> Any:
    return _tensor([_shape(call.args[0])[0], int(call.attrs["outputs"])], "float32")


def _infer_packed_glu(call: Any, context: Any) -> Any:
    rows, outputs = _infer_packed_linear(call, context).shape.values
    return relax.TupleType(_quantized(_tensor([rows, int(outputs) // 2], "float32"), call))


def _infer_packed_embedding(call: Any, _context: Any) -> Any:
    return _tensor([_shape(call.args[0])[0], int(call.attrs["inputs"])], "float32")


def _infer_glu(call: Any, _context: Any) -> Any:
    rows, width = _shape(call.args[0])
    return _tensor([rows, int(width) // 2 if len(call.args) == 1 else width], "float32")


def _infer_pair(call: Any, _context: Any) -> Any:
    return relax.TupleType([call.args[0].ty, call.args[0].ty])


def _quantized(row: Any, call: Any) -> list[Any]:
    """Types of int8 rows with their scales and sums, for float rows of type ``row``."""
    rows, width = row.shape.values
    group, terms = int(call.attrs["group"]), int(call.attrs["terms"])
    groups = int(width) // group if group else 1
    return [_tensor([rows, terms * int(width)], "int8"), *(_tensor([rows, groups], t) for t in ("float32", "int32"))]


def _infer_quantize(call: Any, _context: Any) -> Any:
    return relax.TupleType(_quantized(call.args[0].ty, call))


def _infer_glu_quantized(call: Any, context: Any) -> Any:
    return relax.TupleType(_quantized(_infer_glu(call, context), call))


def _infer_add_norm_quantized(call: Any, _context: Any) -> Any:
    return relax.TupleType([call.args[0].ty, *_quantized(call.args[0].ty, call)])


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "linear": _infer_linear,
    "embedding": _infer_embedding,
    "head_map": _infer_same,
    "rotate": _infer_same,
    "rope": _infer_same,
    "attention": _infer_attention,
    "attention_full": _infer_attention,
    "take_last": _infer_take_last,
    "put_in_order": _infer_same,
    "quantize_activation": _infer_quantize,
    "packed_linear": _infer_packed_linear,
    "packed_embedding": _infer_packed_embedding,
    "packed_glu": _infer_packed_glu,
    "glu": _infer_glu,
    "add_rms_norm": _infer_pair,
    "rotate_quantized": _infer_quantize,
    "glu_quantized": _infer_glu_quantized,
    "norm_quantized": _infer_quantize,
    "add_norm_quantized": _infer_add_norm_quantized,
}


def _register() -> dict[str, Any]:
    operators = {}
    for name, infer in _OPERATORS.items():
        full = PREFIX + name
        tvm_op._ffi_api.RegisterOp(full, f"bitwright's {name}")
        tvm.ir.register_op_attr(full, "FInferType", infer)
        tvm.ir.register_op_attr(full, "FPurity", True)
        tvm.ir.register_op_attr(full, "TScriptPrinterName", full)
        operators[name] = tvm.ir.Op.get(full)
    return operators


_REGISTERED = _register()


def call(name: str, arguments: Sequence[Any], **attributes: Any) -> Any:
    """A call of operator ``name`` (without prefix)."""
    attrs = tvm.ir.make_node("ir.DictAttrs", **attributes) if attributes else None
    return relax.Call(_REGISTERED[name], list(arguments), attrs=attrs)


def name_of(expr: Any) -> str | None:
    """The operator's name without prefix if ``expr`` calls one of ours, else None."""
    if not isinstance(expr, relax.Call) or not isinstance(expr.op, tvm.ir.Op) or not expr.op.name.startswith(PREFIX):
        return None
    return str(expr.op.name[len(PREFIX) :])


def with_attributes(expr: Any, **attributes: Any) -> Any:
    """The same call with attributes added or replaced."""
    merged = {str(k): v for k, v in expr.attrs.items()} | attributes if expr.attrs is not None else attributes
    return relax.Call(expr.op, list(expr.args), attrs=tvm.ir.make_node("ir.DictAttrs", **merged))
