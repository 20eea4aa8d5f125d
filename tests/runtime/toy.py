"""A model small enough to check by hand, compiled with TVM and written as an artifact.

Embedding table E f32[V, D], output matrix W f32[V, D]. The cache holds running sums: row i is the sum of E[id] over
the tokens
0..i, and the logits at position i are W @ row i. They depend on every earlier token and on nothing later, so they show
lost, repeated or misplaced cache entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitwright.runtime.artifact import Artifact, Interface, ModelRecord, StateTensor, TargetRecord, write_artifact

CONTEXT, CHUNK, WIDTH = 48, 16, 8


@dataclass(frozen=True)
class Toy:
    """Parameters of the toy model and its NumPy oracle."""

    embedding: np.ndarray
    output: np.ndarray

    @classmethod
    def make(cls, vocab: int, seed: int = 0) -> Toy:
        random = np.random.default_rng(seed)
        table = random.integers(-3, 4, (2, vocab, WIDTH)).astype("float32")
        return cls(table[0], table[1])

    @property
    def vocab(self) -> int:
        return len(self.embedding)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """float32 [len(ids), V]: whole numbers, exact in float32 whatever the order of the sums."""
        return np.cumsum(self.embedding[list(ids)], axis=0) @ self.output.T

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        ids = list(ids)
        for _ in range(count):
            ids.append(int(self.logits(ids)[-1].argmax()))
        return ids[-count:]


def _append(name: str, rows: int | None, vocab: int, context: int) -> Any:
    from tvm.script.ir_builder import IRBuilder
    from tvm.tirx import Var
    from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

    with IRBuilder() as built, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        n = Var("n", "int64") if rows is None else T.int64(rows)
        cache = T.match_buffer(T.arg("cache", T.handle()), [T.int64(context), T.int64(WIDTH)], "float32")
        tokens = T.match_buffer(T.arg("tokens", T.handle()), [n], "int64")
        table = T.match_buffer(T.arg("table", T.handle()), [T.int64(vocab), T.int64(WIDTH)], "float32")
        pos = T.arg("pos", Var("pos", "int64"))
        with T.serial(T.int64(0), n) as i, T.serial(T.int64(0), T.int64(WIDTH)) as j:
            before = T.if_then_else(
                pos + i > T.int64(0), cache[T.max(pos + i - T.int64(1), T.int64(0)), j], T.float32(0)
            )
            T.buffer_store(cache, before + table[tokens[i], j], [pos + i, j])
    return built.get()


def _logits(name: str, rows: int | None, vocab: int, context: int) -> Any:
    from tvm.script.ir_builder import IRBuilder
    from tvm.tirx import Var
    from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

    with IRBuilder() as built, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        last = name != "logits_score"
        n = Var("n", "int64") if rows is None else T.int64(rows)
        cache = T.match_buffer(T.arg("cache", T.handle()), [T.int64(context), T.int64(WIDTH)], "float32")
        matrix = T.match_buffer(T.arg("matrix", T.handle()), [T.int64(vocab), T.int64(WIDTH)], "float32")
        T.match_buffer(T.arg("tokens", T.handle()), [n], "int64")
        pos = T.arg("pos", Var("pos", "int64"))
        out = T.match_buffer(T.arg("out", T.handle()), [T.int64(1) if last else n, T.int64(vocab)], "float32")
        first = n - T.int64(1) if last else T.int64(0)
        with T.serial(T.int64(0), T.int64(1) if last else n) as i, T.parallel(T.int64(0), T.int64(vocab)) as v:
            T.buffer_store(out, T.float32(0), [i, v])
            with T.serial(T.int64(0), T.int64(WIDTH)) as j:
                T.buffer_store(out, out[i, v] + cache[pos + first + i, j] * matrix[v, j], [i, v])
    return built.get()


def build(vocab: int, context: int = CONTEXT) -> Any:
    """The Relax executable of the toy model for tables of ``vocab`` rows."""
    import tvm
    from tvm import relax, tirx
    from tvm.target import codegen

    from bitwright.autotune.bandwidth import build_read_bandwidth
    from bitwright.codegen.isa import select_isa

    builder = relax.BlockBuilder()
    for name, rows in (("prefill", None), ("decode", 1), ("score", None)):
        append = builder.add_func(_append(f"append_{name}", rows, vocab, context), f"append_{name}")
        project = builder.add_func(_logits(f"logits_{name}", rows, vocab, context), f"logits_{name}")
        n = tirx.Var("n", "int64") if rows is None else tirx.IntImm("int64", rows)
        position = tirx.Var("p", "int64")
        cache_type, table_type = (
            relax.TensorType([context, WIDTH], "float32"),
            relax.TensorType([vocab, WIDTH], "float32"),
        )
        tokens = relax.Var("tokens", relax.TensorType([n], "int64"))
        pos = relax.Var("pos", relax.ShapeType([position]))
        state = relax.Var("state", relax.TupleType([cache_type]))
        weights = relax.Var("weights", relax.TupleType([table_type, table_type]))
        with builder.function(name, [tokens, pos, state, weights]):
            cache = builder.emit(relax.TupleGetItem(state, 0))
            table = builder.emit(relax.TupleGetItem(weights, 0))
            matrix = builder.emit(relax.TupleGetItem(weights, 1))
            new = builder.emit(relax.op.call_tir_inplace(append, [cache, tokens, table, position], [0], [cache_type]))
            out_type = relax.TensorType([n if name == "score" else 1, vocab], "float32")
            out = builder.emit(relax.call_tir(project, [new, matrix, tokens, position], out_type))
            builder.emit_func_output(out)
    read = build_read_bandwidth(select_isa(frozenset()))
    builder.add_func(read, "read_bandwidth")
    target = tvm.target.Target({"kind": "llvm", "mtriple": codegen.llvm_get_system_triple()})
    return tvm.compile(builder.get(), target)


def write(destination: Path, toy: Toy, executable: Any, *, context: int = CONTEXT, **options: Any) -> Artifact:
    """Write the toy model as an artifact; ``options`` go to ``write_artifact``."""
    arguments: dict[str, Any] = {
        "kind": "decoder",
        "model": ModelRecord(name="toy", digest="0" * 64),
        "interface": Interface(
            context=context,
            prefill_chunk=CHUNK,
            vocab=toy.vocab,
            functions=("prefill", "decode", "score"),
            weight_bytes_per_token=toy.output.nbytes + WIDTH * 4,
            cache_bytes_per_token=WIDTH * 4,
        ),
        "state": [StateTensor(name="sums", shape=(context, WIDTH), dtype="float32")],
        "target": TargetRecord(arch="x86_64", features=("sse2",), fingerprint="toy"),
        "export_library": lambda path: executable.export_library(str(path)),
        "weights": {"embedding": toy.embedding, "output": toy.output},
        "plan": "{}\n",
        **options,
    }
    return write_artifact(destination, **arguments)
