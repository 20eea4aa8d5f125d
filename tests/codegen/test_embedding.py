"""Embedding rows out of the packed table are bit-exact."""

from __future__ import annotations

import numpy as np
import pytest

from bitwright.codegen.isa import AVX2, GENERIC, Isa
from bitwright.codegen.linear import AnyLinear, LinearSpec, MixedSpec
from bitwright.codegen.reference.linear import embedding
from bitwright.scheme import LinearScheme

from .linear_case import GENERIC_WIDE, missing, random_layer, tensor

WIDTH = 128
UNIFORM = ["u2g32", "u3g64z", "u4g32", "u4g32z", "u5row", "u6g32z", "u8g128", "u8row"]
SCHEMES = [*UNIFORM, "c2row", "c3g64", "c6g32", "f16", "f32"]
MIXED = "u4g32:40+f16:1+c3g64:36"
IDS = [0, 76, 31, 32, 33, 39, 40, 41, 5, 5]


def table_of(text: str, rows: int | None) -> AnyLinear:
    """A table of 77 rows, in runs if the text names them."""
    runs = [part.split(":") for part in text.split("+")]
    parts = [
        LinearSpec(int(count[0]) if count else 77, WIDTH, LinearScheme.parse(name), rows=rows)  # type: ignore[arg-type]
        for name, *count in runs
    ]
    return parts[0] if len(parts) == 1 else MixedSpec(tuple(parts))


@pytest.mark.parametrize("rows", [1, None], ids=["decode", "prefill"])
@pytest.mark.parametrize(
    ("name", "ranked"), [*((name, False) for name in SCHEMES), (MIXED, False), ("u4g32", True), (MIXED, True)]
)
@pytest.mark.parametrize("isa", [AVX2, GENERIC, GENERIC_WIDE], ids=lambda isa: isa.name)
def test_rows_are_exact(isa: Isa, name: str, ranked: bool, rows: int | None) -> None:
    from bitwright.codegen.builder import build, read_host_target
    from bitwright.codegen.embedding import build_embedding

    if reason := missing(isa):
        pytest.skip(reason)
    table = table_of(name, rows)
    layers = [random_layer(part, isa, seed) for seed, part in enumerate(table.parts)]
    packed = [array for layer in layers for array in layer.packed.values()]
    weights = np.concatenate([layer.weights for layer in layers])
    kernel = build(build_embedding(table, isa, ranked=ranked), read_host_target())["embedding"]
    rank = np.random.default_rng(0).permutation(77).astype(np.int32) if ranked else np.arange(77, dtype=np.int32)
    more = [tensor(rank)] if ranked else []
    for ids in [[i] for i in IDS] if rows else [IDS]:
        result = tensor(np.full((len(ids), WIDTH), np.nan, np.float32))
        kernel(tensor(np.array(ids, np.int64)), *map(tensor, packed), *more, result)
        np.testing.assert_array_equal(result.numpy(), embedding(rank[ids], weights))
