"""Each rewrite on the smallest graph it is for, and on one that only looks like it.

Graphs are ONNX text; ``x`` is [1, n, 8] unless its type says otherwise. What a rewrite makes is compared as a list of
ops, and, where it computes something, by running both graphs in ONNX's reference evaluator.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from bitwright.errors import InternalError
from bitwright.frontend.graph import Editor, dims, sweep
from bitwright.frontend.normalise import (
    batch_axis,
    constants,
    empty_operands,
    float_cast,
    fold_weights,
    gelu,
    gemm,
    identity,
    layer_norm,
    neutral,
    norm_gain,
    reduce_axes,
    reshaping,
    rms_norm,
    sequence,
    token_rows,
    transposing,
)
from bitwright.frontend.normalise.rewrite import Key, Rewrite, run_to_fixpoint

TOLERANCE = 1e-5


def parse(body: str, x: str = "float[1, n, 8] x", initializers: str = "", opset: int = 23) -> ir.Model:
    """A model of one graph from ``x`` to ``y``; every value's shape is known, in terms of n."""

    def inferred(n: int) -> onnx.ModelProto:
        head = f'<ir_version: 10, opset_import: ["" : {opset}]> g ({x.replace("n", str(n))}) => (float[a] y)'
        proto = onnx.parser.parse_model(f"{head} {f'<{initializers}>' if initializers else ''} {{ {body} }}")
        proto.graph.output[0].type.tensor_type.ClearField("shape")
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)

    model, other = (ir.from_proto(inferred(n)) for n in (7, 11))
    values = [[*m.graph.inputs, *(v for node in m.graph for v in node.outputs)] for m in (model, other)]
    for value, twin in zip(*values, strict=True):
        if value.shape is not None and twin.shape is not None:
            pairs = zip(dims(value) or (), dims(twin) or (), strict=True)
            value.shape = ir.Shape([a if a == b else "n" for a, b in pairs])
    run_to_fixpoint([constants.REWRITE], Editor(model))
    return model


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def rewritten(rewrite: Rewrite, model: ir.Model) -> list[str]:
    run_to_fixpoint([rewrite], Editor(model))
    sweep(model)
    return ops(model)


def check_equal(before: ir.Model, after: ir.Model, shape: tuple[int, ...] = (1, 3, 8)) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    results = []
    for model in (before, after):
        proto = ir.to_proto(model)
        proto.ir_version = 10
        results.append(ReferenceEvaluator(proto).run(None, {"x": x})[0])
    np.testing.assert_allclose(results[1], results[0], atol=TOLERANCE)


MEAN_SQUARE = (
    "two = Constant <value_float = 2.0> () axis = Constant <value_ints = [-1]> () s = Pow (x, two) m "
    "= ReduceMean <keepdims = 1> (s, axis) eps = Constant <value_float = 0.01> () v = Add (m, eps) r "
    "= Sqrt (v)"
)
RMS = {
    "reciprocal": f"{MEAN_SQUARE} i = Reciprocal (r) y = Mul (x, i)",
    "swapped": f"{MEAN_SQUARE} i = Reciprocal (r) y = Mul (i, x)",
    "divided": f"{MEAN_SQUARE} y = Div (x, r)",
    "one over": f"{MEAN_SQUARE} one = Constant <value_float = 1.0> () i = Div (one, r) y = Mul (x, i)",
    "square as product": f"{MEAN_SQUARE} y = Div (x, r)".replace("Pow (x, two)", "Mul (x, x)"),
}


@pytest.mark.parametrize("spelling", RMS)
def test_rms_norm(spelling: str) -> None:
    before, after = parse(RMS[spelling]), parse(RMS[spelling])
    assert rewritten(rms_norm.REWRITE, after) == ["RMSNormalization"]
    assert after.graph[0].attributes["epsilon"].value == pytest.approx(0.01)
    check_equal(before, after)


@pytest.mark.parametrize(
    "change",
    [("[-1]", "[1]"), ("keepdims = 1", "keepdims = 0"), ("Pow (x, two)", "Pow (x, eps)"), ("Div (x, r)", "Div (s, r)")],
)
def test_rms_norm_leaves_what_is_none(change: tuple[str, str]) -> None:
    body = RMS["divided"].replace(*change)
    if change[1] == "Pow (x, eps)":
        body = "eps = Constant <value_float = 0.01> () " + body.replace("eps = Constant <value_float = 0.01> () v", "v")
    model = parse(body)
    before = ops(model)
    assert rewritten(rms_norm.REWRITE, model) == before


def test_layer_norm() -> None:
    centred = "axis = Constant <value_ints = [-1]> () mu = ReduceMean (x, axis) d = Sub (x, mu)"
    variance = MEAN_SQUARE.replace("axis = Constant <value_ints = [-1]> ()", "").replace("Pow (x", "Pow (d")
    body = f"{centred} {variance} y = Div (d, r)"
    before, after = parse(body), parse(body)
    assert rewritten(layer_norm.REWRITE, after) == ["LayerNormalization"]
    check_equal(before, after)
    assert rewritten(rms_norm.REWRITE, parse(body)) != ["LayerNormalization"]


def test_gain_and_bias_of_a_norm() -> None:
    gains = (
        "float[8] g = {1,2,3,4,5,6,7,8}, float[8] b = {8,7,6,5,4,3,2,1}, float[8] one = "
        "{1,1,1,1,1,1,1,1}, float[8] zero = {0,0,0,0,0,0,0,0}"
    )
    body = "u = LayerNormalization <axis = -1> (x, one, zero) t = Mul (g, u) y = Add (t, b)"
    before, after = parse(body, initializers=gains), parse(body, initializers=gains)
    assert rewritten(norm_gain.REWRITE, after) == ["LayerNormalization"]
    assert [v.name for v in after.graph[0].inputs if v is not None] == ["x", "g", "b"]
    check_equal(before, after)


@pytest.mark.parametrize(
    "body",
    [
        "u = RMSNormalization <axis = -1> (x, g) y = Mul (u, b)",  # it has a gain already
        "u = RMSNormalization <axis = -1> (x, one) t = Mul (u, b) y = Add (t, u)",  # read elsewhere
        "u = RMSNormalization <axis = -1> (x, one) y = Add (u, b)",  # RMSNormalization has no bias
    ],
)
def test_gain_of_a_norm_that_must_stay(body: str) -> None:
    gains = "float[8] g = {1,2,3,4,5,6,7,8}, float[8] b = {8,7,6,5,4,3,2,1}, float[8] one = {1,1,1,1,1,1,1,1}"
    model = parse(body, initializers=gains)
    before = ops(model)
    assert rewritten(norm_gain.REWRITE, model) == before


NUMBERS = (
    "half = Constant <value_float = 0.5> () one = Constant <value_float = 1.0> () three = Constant "
    "<value_float = 3.0> () q = Constant <value_float = 0.044715> () k = Constant <value_float = "
    "0.7978845834732056> () z = Constant <value_float = 1.4142135381698608> ()"
)
GELUS = {
    "none": [
        "a = Div (x, z) e = Erf (a) f = Add (e, one) g = Mul (x, f) y = Mul (g, half)",
        "h = Mul (x, half) a = Div (x, z) e = Erf (a) f = Add (one, e) y = Mul (h, f)",
    ],
    "tanh": [
        "c = Pow (x, three) d = Mul (c, q) e = Add (x, d) f = Mul (e, k) t = Tanh (f) u = Add (t, one) h "
        "= Mul (x, half) y = Mul (h, u)",
        "s = Mul (x, x) c = Mul (s, x) d = Mul (q, c) e = Add (d, x) f = Mul (k, e) t = Tanh (f) u = Add "
        "(one, t) v = Mul (x, u) y = Mul (v, half)",
    ],
}


@pytest.mark.parametrize(("approximate", "body"), [(kind, body) for kind, bodies in GELUS.items() for body in bodies])
def test_gelu(approximate: str, body: str) -> None:
    before, after = parse(f"{NUMBERS} {body}"), parse(f"{NUMBERS} {body}")
    assert rewritten(gelu.REWRITE, after) == ["Gelu"]
    assert after.graph[0].attributes["approximate"].value == approximate
    check_equal(before, after)


def test_gelu_of_a_product_starts_after_it() -> None:
    """What stands before the function, here a scale, is not part of it."""
    of_product = GELUS["none"][0].replace("(x, z)", "(w, z)").replace("Mul (x, f)", "Mul (w, f)")
    body = f"{NUMBERS} w = Mul (x, three) {of_product}"
    before, after = parse(body), parse(body)
    assert rewritten(gelu.REWRITE, after) == ["Mul", "Gelu"]
    check_equal(before, after)


@pytest.mark.parametrize("change", [("0.5", "0.51"), ("0.044715", "0.05"), ("Tanh", "Sigmoid")])
def test_almost_gelu(change: tuple[str, str]) -> None:
    model = parse(f"{NUMBERS} {GELUS['tanh'][0]}".replace(*change))
    assert "Gelu" not in rewritten(gelu.REWRITE, model)


def test_gemm_becomes_a_linear_layer() -> None:
    weights = "float[2, 8] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}, float[2] b = {1, 2}"
    body = "y = Gemm <transB = 1> (x, w, b)"
    before, after = (parse(body, "float[n, 8] x", weights) for _ in range(2))
    assert rewritten(gemm.REWRITE, after) == ["Transpose", "MatMul", "Add"]
    assert rewritten(fold_weights.REWRITE, after) == ["MatMul", "Add"]
    assert after.graph[0].inputs[1].name == "w", "a folded weight keeps its name"
    check_equal(before, after, (3, 8))


@pytest.mark.parametrize("attributes", ["alpha = 2.0", "beta = 0.5"])
def test_gemm_with_scalars_is_left(attributes: str) -> None:
    weights = "float[8, 1] w = {1,2,3,4,5,6,7,8}, float[1] b = {1}"
    assert rewritten(gemm.REWRITE, parse(f"y = Gemm <{attributes}> (x, w, b)", "float[n, 8] x", weights)) == ["Gemm"]


def test_a_looked_up_table_is_not_folded() -> None:
    table = "float[2, 8] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}"
    body = (
        "zero = Constant <value_ints = [0]> () e = Gather (w, zero) s = Add (x, e) t = Transpose <perm = "
        "[1, 0]> (w) y = MatMul (s, t)"
    )
    assert "Transpose" in rewritten(fold_weights.REWRITE, parse(body, initializers=table))


def test_linear_layers_on_a_flattened_batch() -> None:
    weights = "float[8, 1] w = {1,2,3,4,5,6,7,8}, float[1] b = {3}, int64[2] flat = {-1, 8}, int64[3] back = {1, -1, 1}"
    body = "f = Reshape (x, flat) m = MatMul (f, w) a = Add (m, b) y = Reshape (a, back)"
    before, after = parse(body, initializers=weights), parse(body, initializers=weights)
    run_to_fixpoint([token_rows.REWRITE, reshaping.REWRITE], Editor(after))
    assert ops(after) == ["MatMul", "Add"]
    check_equal(before, after)


def test_reshapes_collapse() -> None:
    sizes = "int64[1] two = {2}, int64[4] split = {1, -1, 2, 4}, int64[3] back = {1, -1, 8}"
    body = "a = Unsqueeze (x, two) b = Reshape (a, split) c = Reshape (b, back) y = Relu (c)"
    assert rewritten(reshaping.REWRITE, parse(body, initializers=sizes)) == ["Relu"]


def test_transposes_collapse() -> None:
    body = "a = Transpose <perm = [2, 0, 1]> (x) b = Transpose <perm = [1, 2, 0]> (a) y = Relu (b)"
    assert rewritten(transposing.REWRITE, parse(body)) == ["Relu"]


def test_a_transpose_of_heads_stays() -> None:
    body = "y = Transpose <perm = [0, 2, 1, 3]> (x)"
    assert rewritten(transposing.REWRITE, parse(body, "float[1, n, 2, 4] x")) == ["Transpose"]


def test_norms_move_in_front_of_transposes() -> None:
    gain = "float[4] g = {1, 2, 3, 4}"
    body = "t = Transpose <perm = [0, 2, 1, 3]> (x) y = RMSNormalization <axis = -1> (t, g)"
    before, after = (parse(body, "float[1, n, 2, 4] x", gain) for _ in range(2))
    assert rewritten(transposing.REWRITE, after) == ["RMSNormalization", "Transpose"]
    check_equal(before, after, (1, 3, 2, 4))


def test_batch_axis_moves_in_front_of_a_transpose() -> None:
    body = "t = Transpose <perm = [0, 2, 1]> (x) s = Constant <value_ints = [1, 2, 4, -1]> () y = Reshape (t, s)"
    before, after = (parse(body, "float[2, n, 4] x") for _ in range(2))
    assert rewritten(batch_axis.REWRITE, after) == ["Reshape", "Transpose"]
    assert after.graph[1].attributes["perm"].value == (0, 1, 3, 2)
    check_equal(before, after, (2, 3, 4))


def test_neutral_arithmetic() -> None:
    body = (
        "zero = Constant <value_float = 0.0> () one = Constant <value_float = 1.0> () a = Add (zero, x) "
        "b = Sub (a, zero) c = Mul (one, b) d = Div (c, one) e = Concat <axis = 2> (d) y = Relu (e)"
    )
    assert rewritten(neutral.REWRITE, parse(body)) == ["Relu"]


@pytest.mark.parametrize("op", ["Sub (zero, x)", "Div (one, x)", "Mul (x, zero)", "Add (x, wide)"])
def test_arithmetic_that_is_not_neutral(op: str) -> None:
    head = "zero = Constant <value_float = 0.0> () one = Constant <value_float = 1.0> ()"
    wide = "float[2, 1, 8] wide = {0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0}"  # zeros, but they repeat x
    assert rewritten(neutral.REWRITE, parse(f"{head} y = {op}", initializers=wide)) == [op.split()[0]]


def test_empty_operands_of_a_concatenation() -> None:
    body = (
        "s = Constant <value_ints = [8]> () l = Constant <value_ints = [2]> () e = Slice (x, s, s, l) y "
        "= Concat <axis = 2> (x, e, x)"
    )
    model = parse(body)
    assert rewritten(empty_operands.REWRITE, model) == ["Concat"]
    assert len(model.graph[0].inputs) == 2


def test_split_to_sequence() -> None:
    body = (
        "k = Constant <value_ints = [2, 6]> () i = Constant <value_int = 1> () s = SplitToSequence <axis "
        "= 2> (x, k) y = SequenceAt (s, i)"
    )
    before, after = parse(body), parse(body)
    assert rewritten(sequence.REWRITE, after) == ["Split"]
    check_equal(before, after)


def test_identity_keeps_an_output_apart_from_an_input() -> None:
    assert rewritten(identity.REWRITE, parse("y = Identity (x)")) == ["Identity"]
    assert rewritten(identity.REWRITE, parse("a = Identity (x) b = Dropout (a) y = Relu (b)")) == ["Relu"]


def test_casts_between_floats_vanish_and_others_stay() -> None:
    assert rewritten(float_cast.REWRITE, parse("a = Cast <to = 1> (x) y = Relu (a)")) == ["Relu"]
    assert rewritten(float_cast.REWRITE, parse("a = Cast <to = 7> (x) y = Cast <to = 10> (a)")) == ["Cast", "Cast"]


def test_axes_of_an_old_reduction() -> None:
    model = parse("y = ReduceMean <axes = [-1], keepdims = 1> (x)", opset=17)
    assert rewritten(reduce_axes.REWRITE, model) == ["ReduceMean"]
    assert len(model.graph[0].inputs) == 2 and "axes" not in model.graph[0].attributes


def test_rewrites_are_keyed_by_domain_and_version() -> None:
    model = parse("y = Relu (x)")
    node = model.graph[0]
    assert Key("Relu").matches(node, 23) and not Key("Relu", until=22).matches(node, 23)
    assert not Key("Relu", domain="com.microsoft").matches(node, 23)


def test_rewrites_that_chase_each_other_are_an_internal_error() -> None:
    restless = Rewrite("restless", (Key("Relu"),), lambda node, editor: True)
    with pytest.raises(InternalError, match="do not come to rest") as caught:
        run_to_fixpoint([restless], Editor(parse("y = Relu (x)")))
    assert caught.value.where == "restless"
