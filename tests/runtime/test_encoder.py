"""Encoder artifacts: ``encode`` with and without token types, on a Relax function of one embedding look-up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import bitwright
from bitwright.errors import UnsupportedError, UsageError
from bitwright.runtime.artifact import Interface, ModelRecord, TargetRecord, write_artifact
from bitwright.runtime.session import Session

VOCAB, WIDTH, CONTEXT = 20, 4, 12


def build(token_types: bool) -> Any:
    """hidden[i] = table[tokens[i]] (+ table[types[i]])."""
    import tvm
    from tvm import relax, tirx
    from tvm.target import codegen

    builder = relax.BlockBuilder()
    n = tirx.Var("n", "int64")
    names = ("tokens", "types") if token_types else ("tokens",)
    ids = [relax.Var(name, relax.TensorType([n], "int64")) for name in names]
    weights = relax.Var("weights", relax.TupleType([relax.TensorType([VOCAB, WIDTH], "float32")]))
    with builder.function("encode", [*ids, weights]):
        with builder.dataflow():
            table = builder.emit(relax.TupleGetItem(weights, 0))
            rows = [builder.emit(relax.op.take(table, each, axis=0)) for each in ids]
            total = builder.emit(relax.op.add(*rows)) if token_types else rows[0]
            out = builder.emit_output(relax.op.multiply(total, relax.const(1.0, "float32")))
        builder.emit_func_output(out)
    target = tvm.target.Target({"kind": "llvm", "mtriple": codegen.llvm_get_system_triple()})
    return tvm.compile(builder.get(), target)


TABLE = np.arange(VOCAB * WIDTH, dtype="float32").reshape(VOCAB, WIDTH)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "token types"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Session:
    executable = build(request.param)
    path = tmp_path_factory.mktemp("encoder") / "artifact"
    write_artifact(
        path,
        kind="encoder",
        model=ModelRecord(name="toy encoder", digest="0"),
        interface=Interface(
            context=CONTEXT,
            prefill_chunk=CONTEXT,
            vocab=VOCAB,
            functions=("encode",),
            token_types=len(TABLE) if request.param else 0,
            weight_bytes_per_token=0,
            cache_bytes_per_token=0,
        ),
        state=[],
        target=TargetRecord(arch="x86_64", features=(), fingerprint="toy"),
        export_library=lambda target: executable.export_library(str(target)),
        weights={"table": TABLE},
        plan="{}",
    )
    return bitwright.load(path, threads=1)


def test_encode(encoder: Session) -> None:
    ids = [3, 1, 4, 1]
    if encoder.manifest.interface.token_types:
        np.testing.assert_array_equal(encoder.encode(ids), TABLE[ids] + TABLE[0])
        np.testing.assert_array_equal(encoder.encode(ids, [1, 0, 2, 1]), TABLE[ids] + TABLE[[1, 0, 2, 1]])
    else:
        np.testing.assert_array_equal(encoder.encode(ids), TABLE[ids])


def test_any_length_up_to_the_context(encoder: Session) -> None:
    for length in (1, CONTEXT):
        assert encoder.encode([1] * length).shape == (length, WIDTH)
    with pytest.raises(UsageError, match="the text has 13 tokens"):
        encoder.encode([1] * (CONTEXT + 1))
    with pytest.raises(UsageError, match="the prompt is empty"):
        encoder.encode([])


def test_token_types_that_do_not_fit_are_refused(encoder: Session) -> None:
    wanted = encoder.manifest.interface.token_types
    # Too few, and one that the table has no row for.
    for types in ([0], [0, len(TABLE)], [-1, 0]):
        with pytest.raises(UsageError) as caught:
            encoder.encode([1, 2], types)
        rule = f"2 of them, one per token, 0 to {len(TABLE) - 1}"
        assert caught.value.limit == (rule if wanted else "this model has none")


@pytest.mark.parametrize("method", ["prefill", "logits", "generate"])
def test_an_encoder_does_not_generate(encoder: Session, method: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        getattr(encoder, method)([1])
    assert caught.value.what == "this model is an encoder"
    assert caught.value.remedy == "use encode(ids)"
