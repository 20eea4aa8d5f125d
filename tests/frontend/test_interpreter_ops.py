"""Every operator of the interpreter against ONNX's reference implementation; attention against NumPy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from bitwright.frontend.interpreter.convert import attribute_value
from bitwright.frontend.interpreter.registry import OpKey, find, supported_ops

TOLERANCE = {"rtol": 2e-6, "atol": 2e-6}
"""Float32 rounding of sums of a few dozen terms near one."""

Array = npt.NDArray[Any]


class Case(NamedTuple):
    op: str
    inputs: list[Array | None]
    attributes: dict[str, Any]


def floats(*shape: int, low: float = -2.0) -> Array:
    return np.random.default_rng(shape).uniform(low, 2.0, shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


def scalar(value: float) -> Array:
    return np.array(value, dtype=np.float32)


A, B, POSITIVE = floats(2, 3, 4), floats(3, 1), floats(2, 3, 4, low=0.1)
CONDITION = floats(2, 3, 4) > 0
COS, SIN = np.cos(floats(9, 4)), np.sin(floats(9, 4))
POSITIONS = np.array([[0, 4, 8]])

CASES = [
    *(Case(op, [A, B], {}) for op in ("Add", "Sub", "Mul", "Div", "Equal", "Less", "LessOrEqual", "Greater")),
    Case("GreaterOrEqual", [A, B], {}),
    Case("Div", [ints(7, -7, 9), ints(2, 2, -4)], {}),
    Case("Pow", [POSITIVE, scalar(1.5)], {}),
    Case("Pow", [A, ints(3)], {}),
    *(Case(op, [A], {}) for op in ("Neg", "Abs", "Exp", "Erf", "Tanh", "Sigmoid", "Relu", "Softplus", "Sin", "Cos")),
    *(Case(op, [POSITIVE], {}) for op in ("Sqrt", "Reciprocal", "Log")),
    *(Case("Gelu", [A], attributes) for attributes in ({}, {"approximate": "none"}, {"approximate": "tanh"})),
    *(Case(op, [A, B, floats(4)], {}) for op in ("Min", "Max")),
    Case("Clip", [A, scalar(-0.5), scalar(0.5)], {}),
    Case("Clip", [A, None, scalar(0.5)], {}),
    Case("Clip", [A], {}),
    Case("Identity", [A], {}),
    Case("Cast", [A], {"to": TensorProto.INT64}),
    Case("Cast", [ints(0, 1, 2)], {"to": TensorProto.FLOAT}),
    Case("Cast", [A], {"to": TensorProto.BOOL}),
    *(Case(op, [CONDITION, ~CONDITION | (A > 1)], {}) for op in ("And", "Or")),
    Case("Not", [CONDITION], {}),
    Case("Where", [CONDITION, A, B], {}),
    Case("Gather", [A, ints(1, 0, -1)], {"axis": 0}),
    Case("Gather", [A, np.array([[0, 3], [-2, 1]])], {"axis": -1}),
    Case("Gather", [A, np.array(2)], {"axis": 1}),
    Case("Reshape", [A, ints(0, -1)], {}),
    Case("Reshape", [floats(0, 3), ints(3, 0)], {"allowzero": 1}),
    Case("Transpose", [A], {"perm": [2, 0, 1]}),
    Case("Transpose", [A], {}),
    Case("Squeeze", [floats(1, 3, 1), ints(-1)], {}),
    Case("Squeeze", [floats(1, 3, 1)], {}),
    Case("Unsqueeze", [A, ints(-1, 0)], {}),
    Case("Concat", [A, floats(2, 5, 4)], {"axis": 1}),
    Case("Split", [A, ints(1, 3)], {"axis": -1}),
    Case("Split", [floats(2, 7)], {"axis": 1, "num_outputs": 3}),
    Case("Slice", [A, ints(1, -3), ints(3, np.iinfo(np.int64).max), ints(1, -1)], {}),
    Case("Slice", [A, ints(3), ints(np.iinfo(np.int64).min), ints(2), ints(-2)], {}),
    Case("Slice", [A, ints(0, 1), ints(1, 2)], {}),
    Case("Expand", [B, ints(2, 1, 4)], {}),
    Case("Shape", [A], {}),
    Case("Shape", [A], {"start": 1, "end": -1}),
    Case("Range", [np.array(1), np.array(9), np.array(3)], {}),
    Case("ConstantOfShape", [ints(2, 3)], {"value": helper.make_tensor("v", TensorProto.INT64, [1], [7])}),
    Case("ConstantOfShape", [ints(2)], {}),
    Case("Constant", [], {"value": helper.make_tensor("v", TensorProto.FLOAT, [2], [1.5, 2.5])}),
    Case("MatMul", [A, floats(4, 5)], {}),
    Case("Gemm", [floats(2, 3), floats(3, 4), floats(4)], {"alpha": 0.5, "beta": 2.0}),
    Case("Gemm", [floats(3, 2), floats(4, 3)], {"transA": 1, "transB": 1}),
    *(Case(op, [A, ints(-1)], {}) for op in ("ReduceMean", "ReduceSum", "ReduceMax")),
    *(Case(op, [A], {"keepdims": 0}) for op in ("ReduceMean", "ReduceSum", "ReduceMax")),
    *(Case(op, [A], {"noop_with_empty_axes": 1}) for op in ("ReduceMean", "ReduceSum", "ReduceMax")),
    Case("Softmax", [A], {}),
    Case("Softmax", [A], {"axis": 1}),
    Case("RMSNormalization", [A, floats(4)], {"axis": -1, "epsilon": 0.1}),
    Case("RMSNormalization", [A, floats(3, 4)], {"axis": 1}),
    Case("LayerNormalization", [A, floats(4), floats(4)], {"epsilon": 0.1}),
    Case("LayerNormalization", [A, floats(3, 4)], {"axis": 1}),
    *(
        Case("RotaryEmbedding", [x, cos, sin, positions], {"interleaved": interleaved, **attributes})
        for interleaved in (0, 1)
        for x, cos, sin, positions, attributes in (
            (floats(1, 3, 16), COS, SIN, POSITIONS, {"num_heads": 2}),
            (floats(1, 3, 24), COS, SIN, POSITIONS, {"num_heads": 2, "rotary_embedding_dim": 8}),
            (floats(1, 2, 3, 8), COS, SIN, POSITIONS, {}),
            (floats(1, 3, 16), COS[None, :3], SIN[None, :3], None, {"num_heads": 2}),
        )
    ),
]


def reference(case: Case) -> list[Array]:
    """What ONNX's own evaluator computes at opset 23."""
    names = [f"x{i}" if x is not None else "" for i, x in enumerate(case.inputs)]
    outputs = ["y0", "y1", "y2"][: _output_count(case)]
    node = helper.make_node(case.op, names, outputs, **case.attributes)
    given_values = {name: x for name, x in zip(names, case.inputs, strict=True) if x is not None}
    graph = helper.make_graph(
        [node],
        "case",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), None)
            for n, x in given_values.items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    return [np.asarray(y) for y in ReferenceEvaluator(model).run(None, given_values)]


def _output_count(case: Case) -> int:
    if case.op != "Split":
        return 1
    return case.attributes.get("num_outputs") or len(case.inputs[1])


def computed(case: Case) -> list[Array]:
    import onnx_ir as ir

    key = OpKey("", case.op, onnx.defs.get_schema(case.op, 23).since_version)
    function = find(key)
    assert function is not None
    attributes = {}
    for name, value in case.attributes.items():
        attribute = ir.serde.deserialize_attribute(helper.make_attribute(name, value))
        attributes[name] = attribute_value(attribute, torch.float32, torch.device("cpu"), "test")
    inputs = [None if x is None else torch.from_numpy(np.array(x)) for x in case.inputs]
    result = function(*inputs, **attributes)
    return [y.numpy() for y in (result if isinstance(result, tuple) else (result,))]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.op)
def test_op_equals_onnx_reference(case: Case) -> None:
    expected, actual = reference(case), computed(case)
    assert len(actual) >= len(expected)
    for want, got in zip(expected, actual, strict=False):
        assert got.shape == want.shape
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, **TOLERANCE)


def test_every_standard_op_has_a_case() -> None:
    standard = {key.op for key in supported_ops() if key.domain == ""}
    assert standard - {case.op for case in CASES} == {"Attention"}


def test_every_op_is_registered_under_the_version_that_opset_23_means() -> None:
    for key in supported_ops():
        if key.domain == "":
            assert onnx.defs.get_schema(key.op, 23).since_version == key.version


def test_split_without_sizes_or_count_says_so() -> None:
    with pytest.raises(ValueError, match="neither sizes nor num_outputs"):
        computed(Case("Split", [A], {}))


@pytest.mark.parametrize("op", ["RMSNormalization", "LayerNormalization"])
def test_norm_refuses_a_half_precision_stash(op: str) -> None:
    with pytest.raises(ValueError, match="stash_type is 10"):
        computed(Case(op, [A, floats(4)], {"stash_type": 10}))


def test_rotary_refuses_tables_of_the_wrong_width() -> None:
    with pytest.raises(ValueError, match="the tables hold 4 angles, 8 are needed"):
        computed(Case("RotaryEmbedding", [floats(1, 3, 32), COS, SIN, POSITIONS], {"num_heads": 2}))


def attention_by_definition(
    q: Array, k: Array, v: Array, mask: Array | None, scale: float, softcap: float, causal: bool, window: int
) -> Array:
    """q [H, n, D], k [Hkv, t, D], v [Hkv, t, Dv] in float64, one query and head at a time."""
    heads, n, _ = q.shape
    kv_heads, total, _ = k.shape
    result = np.zeros((heads, n, v.shape[-1]))
    for h in range(heads):
        kv = h // (heads // kv_heads)
        for i in range(n):
            position = total - n + i
            scores = np.array([q[h, i] @ k[kv, j] * scale for j in range(total)])
            scores = softcap * np.tanh(scores / softcap) if softcap else scores
            if mask is not None:
                scores = np.where(mask[h, i], scores, -np.inf) if mask.dtype == bool else scores + mask[h, i]
            for j in range(total):
                if causal and (j > position or (window and j <= position - window)):
                    scores[j] = -np.inf
            weights = np.exp(scores - scores.max())
            result[h, i] = weights / weights.sum() @ v[kv]
    return result


def run_attention(
    n: int,
    past: int,
    kv_heads: int,
    group: int,
    *,
    window: int = 0,
    softcap: float = 0.0,
    causal: bool = True,
    scale: float | None = None,
    mask: Array | None = None,
    flat: bool = True,
    seed: int = 0,
) -> None:
    """Compare the op with the definition; K and V head sizes differ."""
    heads, dim, value_dim = kv_heads * group, 6, 4
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((heads, n, dim))
    k, v = rng.standard_normal((kv_heads, past + n, dim)), rng.standard_normal((kv_heads, past + n, value_dim))
    tensors = [torch.from_numpy(x)[None] for x in (q, k[:, past:], v[:, past:])]
    if flat:
        tensors = [x.transpose(1, 2).flatten(2) for x in tensors]
    caches = [torch.from_numpy(x[:, :past])[None] for x in (k, v)] if past else [None, None]
    function = find(OpKey("bitwright", "Attention", 1)) if window else find(OpKey("", "Attention", 23))
    assert function is not None
    extra = {"window": window} if window else {}
    counts = {"q_num_heads": heads, "kv_num_heads": kv_heads} if flat else {}
    tensor_mask = None if mask is None else torch.from_numpy(mask)
    y, present_key, present_value = function(
        *tensors, tensor_mask, *caches, scale=scale, softcap=softcap, is_causal=int(causal), **counts, **extra
    )
    full_mask = None if mask is None else np.broadcast_to(mask, (1, heads, n, past + n))[0]
    expected = attention_by_definition(q, k, v, full_mask, scale or dim**-0.5, softcap, causal, window)
    shaped = y[0].unflatten(-1, (heads, value_dim)).transpose(0, 1) if flat else y[0]
    np.testing.assert_allclose(shaped.numpy(), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(present_key[0].numpy(), k)
    np.testing.assert_array_equal(present_value[0].numpy(), v)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 9),
    past=st.integers(0, 7),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    window=st.sampled_from([0, 1, 3, 20]),
    softcap=st.sampled_from([0.0, 2.0]),
    scale=st.sampled_from([None, 0.3]),
    flat=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_causal_attention_equals_its_definition(
    n: int,
    past: int,
    kv_heads: int,
    group: int,
    window: int,
    softcap: float,
    scale: float | None,
    flat: bool,
    seed: int,
) -> None:
    run_attention(n, past, kv_heads, group, window=window, softcap=softcap, scale=scale, flat=flat, seed=seed)


@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_attention_in_both_directions(softcap: float) -> None:
    run_attention(5, 0, 2, 3, causal=False, softcap=softcap)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_attention_with_an_explicit_mask(causal: bool, softcap: float) -> None:
    visible = np.random.default_rng(1).random((1, 1, 5, 8)) < 0.6
    visible[..., 0] = True  # every query sees something
    run_attention(5, 3, 2, 2, mask=visible, causal=causal, softcap=softcap)
    run_attention(5, 3, 2, 2, mask=np.where(visible, 0.5, -3.0), causal=causal, softcap=softcap)


@pytest.mark.parametrize("window", [0, 3, 200])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_attention_in_blocks_of_queries_equals_its_definition(
    monkeypatch: pytest.MonkeyPatch, window: int, softcap: float
) -> None:
    from bitwright.frontend.interpreter.ops import attention

    monkeypatch.setattr(attention, "QUERY_BLOCK", 4)
    run_attention(11, 6, 2, 2, window=window, softcap=softcap)
    run_attention(11, 0, 2, 2, window=window, softcap=softcap)


@pytest.mark.parametrize(("run", "window", "softcap"), [(32, 0, 0.0), (32, 40, 0.0), (64, 0, 5.0), (0, 0, 0.0)])
def test_queries_see_what_is_stored_of_runs_before_their_own(
    run: int, window: int, softcap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitwright.codegen.reference.attention import attention as oracle
    from bitwright.frontend.interpreter.ops import attention

    monkeypatch.setattr(attention, "QUERY_BLOCK", 70)  # 64 queries at once
    rng = np.random.default_rng(run + window)
    n, heads, kv_heads, width = 150, 4, 2, 16
    q = rng.standard_normal((n, heads, width)).astype("float32")
    k, v, k_stored, v_stored = (rng.standard_normal((n, kv_heads, width)).astype("float32") for _ in range(4))
    options = {"window": window} if window else {}
    function = find(OpKey("bitwright", "Attention", 1)) if window else find(OpKey("", "Attention", 23))
    y, present, _ = function(
        *(torch.from_numpy(x.reshape(1, n, -1)) for x in (q, k, v)),
        q_num_heads=heads, kv_num_heads=kv_heads, softcap=softcap, is_causal=1, **options,
        stored=tuple(torch.from_numpy(x.reshape(1, n, -1)) for x in (k_stored, v_stored)), run=run,
    )  # fmt: skip
    own = {"recent": (q, k, v), "run": run} if run else {}
    expected = oracle(q, k_stored, v_stored, scale=width**-0.5, softcap=softcap, window=window, **own)
    np.testing.assert_allclose(y[0].numpy(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(present[0].transpose(0, 1).numpy(), k)  # what is cached is what was given


def test_attention_equals_onnx_reference_without_a_past() -> None:
    case = Case(
        "Attention",
        [floats(1, 5, 16), floats(1, 5, 8), floats(1, 5, 8)],
        {"q_num_heads": 4, "kv_num_heads": 2, "is_causal": 1, "softcap": 1.5, "scale": 0.7},
    )
    np.testing.assert_allclose(computed(case)[0], reference(case)[0], **TOLERANCE)


def test_attention_names_what_is_wrong() -> None:
    wrong_groups = {"q_num_heads": 4, "kv_num_heads": 3}
    with pytest.raises(ValueError, match="3 KV heads do not divide 4 query heads"):
        computed(Case("Attention", [floats(1, 5, 16), floats(1, 5, 12), floats(1, 5, 12)], wrong_groups))
    with pytest.raises(ValueError, match="q_num_heads and kv_num_heads must be given"):
        computed(Case("Attention", [floats(1, 5, 16)] * 3, {}))
    with pytest.raises(ValueError, match="a window is defined for causal attention only"):
        run_attention(3, 0, 1, 1, window=2, causal=False)
