"""One lowering per operator: which kernel computes it, and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tvm import relax

from bitwright.codegen.activation import build_quantize_activation
from bitwright.codegen.attention import (
    AttentionSpec,
    FullAttentionSpec,
    attention_team_kernel,
    build_attention,
    build_attention_full,
)
from bitwright.codegen.cache import AppendSpec, CacheSpec, append_team_kernel, build_cache_append
from bitwright.codegen.columns import Columns
from bitwright.codegen.elementwise import BinarySpec, GluSpec, UnarySpec, build_binary, build_glu, build_unary
from bitwright.codegen.embedding import build_embedding
from bitwright.codegen.head_map import HeadMapSpec, build_head_map
from bitwright.codegen.isa import Isa
from bitwright.codegen.linear import (
    AnyLinear,
    GluLinearSpec,
    LinearSpec,
    build_glu_linear,
    build_linear,
    linear_spec,
    linear_team_kernel,
)
from bitwright.codegen.linear.schedule import Schedules
from bitwright.codegen.linear.tile_functions import TileFunctions
from bitwright.codegen.norm import NormSpec, build_norm
from bitwright.codegen.order import PutInOrderSpec, build_put_in_order, put_in_order_team_kernel
from bitwright.codegen.quantized_rows import QuantizedRows
from bitwright.codegen.rope import RopeSpec, build_rope
from bitwright.codegen.rotate import RotateSpec, build_rotate
from bitwright.codegen.rows import TakeLastSpec, build_take_last
from bitwright.codegen.team import TeamKernel, standalone
from bitwright.hadamard import Rotation
from bitwright.passes.base import column_slice, static_rows
from bitwright.runs import parse_weights

# TVM's pattern kind of functions that are not fused with others.
OPAQUE = 8


@dataclass(frozen=True)
class Lowering:
    """One call being lowered.

    Attributes:
        rewriter: the function under construction.
        call: the call, operands in place.
        isa: what kernels are generated for.
        threads: how many threads long work is divided among.
        caches: what each layer's K and V are stored as.
        kernels: spec to global variable, shared by the module's functions.
        teams: kernels that a team of threads can share, by the name of their function.
        schedules: chooses the knobs of linear kernels.
        tiles: functions that linear kernels share.
    """

    rewriter: Any
    call: Any
    isa: Isa
    threads: int
    caches: tuple[CacheSpec, ...]
    kernels: dict[Any, Any]
    teams: dict[str, TeamKernel]
    schedules: Schedules
    tiles: TileFunctions

    @property
    def rows(self) -> Any:
        """1 when the first operand has exactly one row, else None (a symbolic number)."""
        return static_rows(self.call.args[0])

    @property
    def quantize(self) -> QuantizedRows | None:
        """How an operator quantizes its result; None if it does not."""
        if "group" not in self.call.attrs:
            return None
        return self.quantized_rows()

    def quantized_rows(self) -> QuantizedRows:
        """How the rows are quantized that the operator makes."""
        return QuantizedRows(int(self.attribute("group")), int(self.attribute("terms")))  # type: ignore[arg-type]

    def attribute(self, name: str) -> Any:
        return self.call.attrs[name]

    def kernel(self, spec: Any, build: Callable[[], Any]) -> Any:
        """The global variable of the kernel for ``spec``, built (a PrimFunc or team kernel) when first asked for."""
        if spec not in self.kernels:
            built = build()
            function = standalone(built, self.threads) if isinstance(built, TeamKernel) else built
            name = str(function.attrs["global_symbol"])
            # The builder makes the name unique; the symbol is attached from it at the end. TVM must not fuse into it.
            function = function.without_attr("global_symbol").with_attr("op_pattern", OPAQUE)
            self.kernels[spec] = variable = self.rewriter.builder.add_func(function, name)
            if isinstance(built, TeamKernel):
                self.teams[variable.name_hint] = replace(built, name=variable.name_hint)
        return self.kernels[spec]

    def emit(self, kernel: Any, arguments: Sequence[Any], result: Any = None) -> Any:
        """Bind the result of a kernel call; ``result`` is its type, by default that of the call being lowered.

        Scalars among the arguments are expressions; results follow the arguments in the kernel's own list.
        """
        if result is None:
            result = self.result_type()
        types = list(result.fields) if isinstance(result, relax.TupleType) else result
        return self.rewriter.emit(relax.op.call_tir(kernel, relax.Tuple(list(arguments)), types))

    def result_type(self) -> Any:
        """The type of the call being lowered, its operands being those of the new function."""
        return self.rewriter.builder.normalize(self.call).ty


def _columns(at: Lowering, value: Any) -> tuple[Any, Columns | None]:
    """What a kernel for many tokens reads instead of a slice: the matrix, and the columns of it that ``value`` is."""
    found = column_slice(at.rewriter.bound, value) if at.rows is None else None
    if found is None:
        return value, None
    return found[0], Columns(_width(value), _width(found[0]), found[1])


def _width(value: Any) -> int:
    return int(value.ty.shape.values[1])


def _packed_linear(at: Lowering) -> Any:
    spec = _matrix(at, bias=bool(at.attribute("has_bias")), residual="has_residual" in at.call.attrs)
    name = f"{spec.name}{'_decode' if at.rows else ''}"
    build = linear_team_kernel if at.rows else build_linear
    return at.emit(
        at.kernel(spec, lambda: build(spec, at.isa, name, schedules=at.schedules, shared=at.tiles)), at.call.args
    )


def _packed_glu(at: Lowering) -> Any:
    linear = _matrix(at, bias=False)
    assert isinstance(linear, LinearSpec), "the pass that joins gates found one scheme"
    spec = GluLinearSpec(linear, _GLU[str(at.attribute("activation"))], at.quantized_rows())
    return at.emit(
        at.kernel(spec, lambda: build_glu_linear(spec, at.isa, spec.name, schedules=at.schedules)), at.call.args
    )


def _packed_embedding(at: Lowering) -> Any:
    table, ranked = _matrix(at, bias=False), bool(int(at.attribute("ranked")))
    kernel = at.kernel(("embedding", table, ranked), lambda: build_embedding(table, at.isa, ranked=ranked))
    return at.emit(kernel, at.call.args)


def _matrix(at: Lowering, *, bias: bool, residual: bool = False) -> AnyLinear:
    scheme, shape = parse_weights(str(at.attribute("scheme"))), (at.attribute("outputs"), at.attribute("inputs"))
    return linear_spec(scheme, int(shape[0]), int(shape[1]), bias=bias, rows=at.rows, residual=residual)


def _quantize_activation(at: Lowering) -> Any:
    width, quantized = _width(at.call.args[0]), at.quantized_rows()
    key = ("quantize_activation", width, quantized, at.rows)
    return at.emit(at.kernel(key, lambda: build_quantize_activation(width, quantized, at.isa, at.rows)), at.call.args)


def _rope(at: Lowering) -> Any:
    x, cos = at.call.args[:2]
    heads = int(at.attribute("heads"))
    matrix, source = _columns(at, x)
    spec = RopeSpec(
        heads,
        _width(x) // heads,
        int(at.attribute("rotary_dim")),
        int(cos.ty.shape.values[0]),
        bool(int(at.attribute("interleaved"))),
        at.rows,
        at.isa.lanes,
        source,
    )
    return at.emit(at.kernel(spec, lambda: build_rope(spec)), [matrix, *at.call.args[1:]])


def _head_map(at: Lowering) -> Any:
    matrices = at.call.args[1]
    heads = int(at.attribute("heads"))
    groups, size, _ = (int(extent) for extent in matrices.ty.shape.values)
    spec = HeadMapSpec(heads, groups, size, len(at.call.args) > 2, at.rows, at.isa)
    return at.emit(at.kernel(spec, lambda: build_head_map(spec)), at.call.args)


def _rotate(at: Lowering) -> Any:
    rotation = Rotation(*(int(at.attribute(name)) for name in ("blocks", "order", "power")))
    spec = RotateSpec(rotation, bool(int(at.attribute("transposed"))), at.rows, at.isa.lanes, at.quantize)
    return at.emit(at.kernel(spec, lambda: build_rotate(spec)), at.call.args)


def _attention(at: Lowering) -> Any:
    """Append to the caches in place, then attend: the attention reads the appended caches, which orders the two."""
    q, k, v, k_cache, v_cache, position = at.call.args
    cache = at.caches[int(at.attribute("layer"))]
    (k, key_source), (v, value_source) = _columns(at, k), _columns(at, v)
    append = AppendSpec(cache, at.rows, at.isa.lanes, key_source, value_source)
    start = position.ty.values[0]
    written = at.rewriter.emit(
        relax.op.call_tir_inplace(
            at.kernel(append, lambda: (append_team_kernel if at.rows else build_cache_append)(append)),
            relax.Tuple([k, v, k_cache, v_cache, start]),
            [2, 3],
            [k_cache.ty, v_cache.ty],
        )
    )
    caches = [at.rewriter.emit(relax.TupleGetItem(written, i)) for i in range(2)]
    spec = AttentionSpec(
        int(at.attribute("q_heads")),
        cache,
        float(at.attribute("scale")),
        float(at.attribute("softcap")),
        int(at.attribute("window")),
        at.rows,
        at.isa,
        at.threads,
    )
    if spec.reads_rows:
        spec = replace(spec, key_source=key_source, value_source=value_source)
    build = attention_team_kernel if at.rows else build_attention
    rows = [k, v] if spec.reads_rows else []
    return at.emit(at.kernel(spec, lambda: build(spec)), [q, *caches, *rows, start])


def _attention_full(at: Lowering) -> Any:
    q, _, v = at.call.args
    heads, kv_heads = int(at.attribute("q_heads")), int(at.attribute("kv_heads"))
    spec = FullAttentionSpec(
        heads,
        kv_heads,
        _width(q) // heads,
        _width(v) // kv_heads,
        float(at.attribute("scale")),
        float(at.attribute("softcap")),
        at.isa.lanes,
        at.threads,
    )
    return at.emit(at.kernel(spec, lambda: build_attention_full(spec)), at.call.args)


_GLU: dict[str, Any] = {"silu": "silu", "gelu": "gelu_erf", "gelu_tanh": "gelu_tanh"}


def _glu(at: Lowering) -> Any:
    packed = len(at.call.args) == 1
    width = _width(at.call.args[0]) // (2 if packed else 1)
    function = _GLU[str(at.attribute("activation"))]
    spec = GluSpec(function, width, packed, at.rows, at.isa.lanes, at.quantize)
    return at.emit(at.kernel(spec, lambda: build_glu(spec)), at.call.args)


def _add_norm(at: Lowering) -> Any:
    x, epsilon = at.call.args[0], float(at.attribute("epsilon"))
    spec = NormSpec("rms", _width(x), epsilon, False, True, at.rows, at.isa.lanes, at.quantize)
    return at.emit(at.kernel(spec, lambda: build_norm(spec)), at.call.args)


def _norm_quantized(at: Lowering) -> Any:
    kind: Any = str(at.attribute("kind"))
    x, bias = at.call.args[0], len(at.call.args) > 2
    spec = NormSpec(kind, _width(x), float(at.attribute("epsilon")), bias, False, at.rows, at.isa.lanes, at.quantize)
    return at.emit(at.kernel(spec, lambda: build_norm(spec)), at.call.args)


def _take_last(at: Lowering) -> Any:
    if at.rows == 1:
        return at.call.args[0]
    x = at.call.args[0]
    spec = TakeLastSpec(tuple(int(d) for d in x.ty.shape.values[1:]), str(x.ty.dtype))
    return at.emit(at.kernel(spec, lambda: build_take_last(spec)), at.call.args)


def _put_in_order(at: Lowering) -> Any:
    spec = PutInOrderSpec(_width(at.call.args[0]), at.rows)
    build = put_in_order_team_kernel if at.rows else build_put_in_order
    return at.emit(at.kernel(spec, lambda: build(spec)), at.call.args)


def _norm(kind: Any) -> Callable[[Lowering], Any]:
    def lower(at: Lowering) -> Any:
        x = at.call.args[0]
        width = int(x.ty.shape.values[-1])
        rows = at.rows if len(x.ty.shape.values) == 2 else None
        bias = len(at.call.args) > 2
        spec = NormSpec(kind, width, float(at.call.attrs.epsilon), bias, False, rows, at.isa.lanes)
        kernel = at.kernel(spec, lambda: build_norm(spec))
        return _over_rows(at, kernel, width)

    return lower


def _over_rows(at: Lowering, kernel: Any, width: int) -> Any:
    """Call a [rows, width] kernel on a value of any rank by viewing its leading axes as one."""
    x, *rest = at.call.args
    shape = list(x.ty.shape.values)
    if len(shape) == 2:
        return at.emit(kernel, at.call.args)
    rows = shape[0]
    for extent in shape[1:-1]:
        rows = rows * extent
    flat = at.rewriter.emit(relax.op.reshape(x, [rows, width]))
    y = at.emit(kernel, [flat, *rest], relax.TensorType([rows, width], "float32"))
    return at.rewriter.emit(relax.op.reshape(y, shape))


def _unary(function: Any) -> Callable[[Lowering], Any]:
    def lower(at: Lowering) -> Any:
        x = at.call.args[0]
        if len(x.ty.shape.values) != 2 or str(x.ty.dtype) != "float32":
            return None
        spec = UnarySpec(function, _width(x), at.rows, at.isa.lanes)
        return at.emit(at.kernel(spec, lambda: build_unary(spec)), at.call.args)

    return lower


def _binary(operator: Any) -> Callable[[Lowering], Any]:
    def lower(at: Lowering) -> Any:
        left, right = at.call.args
        shapes = [[str(d) for d in v.ty.shape.values] if isinstance(v, relax.Var) else [] for v in (left, right)]
        broadcast = shapes[0][1:] == shapes[1]
        if len(shapes[0]) != 2 or not (broadcast or shapes[0] == shapes[1]) or str(left.ty.dtype) != "float32":
            return None
        spec = BinarySpec(operator, _width(left), broadcast, at.rows, at.isa.lanes)
        return at.emit(at.kernel(spec, lambda: build_binary(spec)), at.call.args)

    return lower


LOWERINGS: dict[str, Callable[[Lowering], Any]] = {
    "packed_linear": _packed_linear,
    "packed_glu": _packed_glu,
    "packed_embedding": _packed_embedding,
    "quantize_activation": _quantize_activation,
    "head_map": _head_map,
    "rotate": _rotate,
    "rotate_quantized": _rotate,
    "rope": _rope,
    "attention": _attention,
    "attention_full": _attention_full,
    "glu": _glu,
    "glu_quantized": _glu,
    "add_rms_norm": _add_norm,
    "add_norm_quantized": _add_norm,
    "norm_quantized": _norm_quantized,
    "take_last": _take_last,
    "put_in_order": _put_in_order,
}
"""By the name of one of bitwright's operators."""

RELAX_LOWERINGS: dict[str, Callable[[Lowering], Any]] = {
    "relax.nn.rms_norm": _norm("rms"),
    "relax.nn.layer_norm": _norm("layer"),
    "relax.nn.silu": _unary("silu"),
    "relax.nn.gelu": _unary("gelu_erf"),
    "relax.nn.gelu_tanh": _unary("gelu_tanh"),
    "relax.add": _binary("add"),
    "relax.subtract": _binary("sub"),
    "relax.multiply": _binary("mul"),
}
"""By the name of a Relax operator; None from a lowering leaves the call to TVM."""
