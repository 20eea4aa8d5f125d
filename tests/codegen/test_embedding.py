"""Embedding rows out of the packed table are bit-exact."""

from __future__ import annotations

import numpy as np
import pytest

from bitwright.codegen.isa import AVX2, GENERIC, Isa
from bitwright.codegen.linear import LinearSpec
from bitwright.codegen.reference.linear import embedding
from bitwright.scheme import LinearScheme, WeightScheme

from .linear_case import GENERIC_WIDE, missing, random_layer, tensor

VOCABULARY, WIDTH = 77, 128
SCHEMES = ["u2g32", "u3g64z", "u4g32", "u4g32z", "u5row", "u6g32z", "u8g128", "u8row", "f16", "f32"]


@pytest.mark.parametrize("rows", [1, None], ids=["decode", "prefill"])
@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("isa", [AVX2, GENERIC, GENERIC_WIDE], ids=lambda isa: isa.name)
def test_rows_are_exact(isa: Isa, name: str, rows: int | None) -> None:
    from bitwright.codegen.builder import build, read_host_target
    from bitwright.codegen.embedding import build_embedding

    if reason := missing(isa):
        pytest.skip(reason)
    weight = WeightScheme.parse(name)
    layer = random_layer(LinearSpec(VOCABULARY, WIDTH, LinearScheme(weight)), isa)
    ids = np.array([76] if rows else [0, 76, 31, 32, 33, 5, 5], np.int64)
    result = tensor(np.full((ids.size, WIDTH), np.nan, np.float32))
    kernel = build(build_embedding(VOCABULARY, WIDTH, weight, isa, rows), read_host_target())["embedding"]  # type: ignore[arg-type]
    kernel(tensor(ids), *map(tensor, layer.packed.values()), result)
    np.testing.assert_array_equal(result.numpy(), embedding(ids, layer.weights))
