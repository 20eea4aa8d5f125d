"""Runs of outputs with schemes of their own in one kernel call equal the runs computed apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bitwright.codegen.isa import AVX2, AVX512VNNI, Isa
from bitwright.codegen.linear import LinearSpec, MixedSpec, build_linear, linear_arguments
from bitwright.codegen.reference import linear as reference
from bitwright.errors import InternalError, UnsupportedError
from bitwright.scheme import LinearScheme

from .linear_case import missing, random_layer, tensor

INPUTS = 256
MIXES = [
    (("u4g32a8", 64), ("u3g32a8", 128)),
    (("u2g32a8", 40), ("u8rowa8", 17), ("u5g64za8", 64)),  # three groupings, tails in the middle
    (("u4g32a8", 64), ("u4g32a16", 32), ("f16", 24), ("u6g32a8", 72)),  # integers and floats
]


def spec_of(mix: tuple[tuple[str, int], ...], rows: Any, bias: bool) -> MixedSpec:
    return MixedSpec(tuple(LinearSpec(n, INPUTS, LinearScheme.parse(name), bias, rows) for name, n in mix))


@pytest.mark.parametrize("rows", [1, None], ids=["decode", "prefill"])
@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: "+".join(name for name, _ in mix))
@pytest.mark.parametrize("isa", [AVX2, AVX512VNNI], ids=lambda isa: isa.name)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_mixed_call_equals_its_parts(isa: Isa, mix: Any, rows: Any, threads: int) -> None:
    from bitwright.codegen.builder import build, read_host_target

    if reason := missing(isa):
        pytest.skip(reason)
    if rows is None and threads > 1:
        pytest.skip("any number of tokens are divided at run time")
    spec = spec_of(mix, rows, bias=True)
    function = build(build_linear(spec, isa, threads=threads), read_host_target(threads))["linear"]
    assert_equals_parts(function, spec, isa)


def assert_equals_parts(function: Any, spec: MixedSpec, isa: Isa) -> None:
    """A compiled kernel computes what the oracle says of each part, for one or some tokens."""
    rows = spec.rows
    layers = [random_layer(part, isa, seed) for seed, part in enumerate(spec.parts)]
    tokens = rows or 7
    x = np.random.default_rng(9).standard_normal((tokens, INPUTS)).astype(np.float32)
    values: dict[str, Any] = {"y": np.full((tokens, spec.outputs), np.nan, np.float32)}
    expected, weights = [], []
    for part, layer in zip(spec.parts, layers, strict=True):
        group = part.layout(isa).group
        if terms := part.scheme.terms:
            x8, scale, _ = reference.quantize_activation(x, group, terms)
            expected.append(reference.linear_packed(x8, scale, layer.codes, layer.scales, layer.zeros, layer.bias))  # type: ignore[arg-type]
        else:
            expected.append(reference.linear(x, layer.weights, layer.bias))
        weights += list(layer.packed.values())
    if spec.bias:
        values["bias"] = np.concatenate([layer.bias for layer in layers if layer.bias is not None])
    if spec.residual:
        values["residual"] = np.random.default_rng(3).standard_normal(values["y"].shape).astype(np.float32)
    arguments, rest = [], iter(weights)
    for argument in linear_arguments(spec, isa):
        base = argument.name.split("_")[0]
        if base in ("x8", "scale", "sum"):
            shapes = {a.name: a.shape for a in linear_arguments(spec, isa)}
            suffix = argument.name[len(base) :]
            terms = shapes["x8" + suffix][1] // INPUTS
            triple = reference.quantize_activation(x, INPUTS // shapes["scale" + suffix][1], terms)
            arguments.append(triple[("x8", "scale", "sum").index(base)])
        elif base == "x":
            arguments.append(x)
        else:
            arguments.append(values[argument.name] if argument.name in values else next(rest))
    passed = [tensor(a) for a in arguments]
    function(*passed)
    whole = np.concatenate(expected, axis=1) + (values["residual"] if spec.residual else 0)
    np.testing.assert_allclose(passed[-1].numpy(), whole, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("rows", [1, None], ids=["decode", "prefill"])
@pytest.mark.parametrize("isa", [AVX2, AVX512VNNI], ids=lambda isa: isa.name)
def test_kernels_share_the_code_of_their_tiles(isa: Isa, rows: Any) -> None:
    """Runs of other lengths, in another order, behind other runs, call the same functions."""
    from bitwright.codegen.builder import build, read_host_target
    from bitwright.codegen.linear.tile_functions import TileFunctions

    if reason := missing(isa):
        pytest.skip(reason)
    shared = TileFunctions()
    first, second, tail, added = (
        MixedSpec(tuple(LinearSpec(n, INPUTS, LinearScheme.parse(name), False, rows, residual) for name, n in mix))
        for mix, residual in (
            # Tiles of runs are of one size where they are a multiple of 128 rows, with 8 lanes and with 16.
            ((("u4g32a8", 128), ("c3g64a8", 256), ("f16", 128)), False),
            ((("c3g64a8", 128), ("u4g32a8", 384)), False),
            ((("u4g32a8", 128), ("c3g64a8", 17)), False),
            ((("u4g32a8", 128), ("c3g64a8", 256)), True),
        )
    )

    def kernel(spec: MixedSpec, name: str) -> Any:
        return build_linear(spec, isa, name, threads=2, shared=shared)

    kernels = {"first": kernel(first, "first"), "second": kernel(second, "second")}
    assert len(shared.functions()) == 3  # one per scheme
    kernels["tail"] = kernel(tail, "tail")
    assert len(shared.functions()) == 4  # rows that end within a tile are written with care
    kernels["added"] = kernel(added, "added")
    functions = shared.functions()
    assert len(functions) == 6  # a residual is read
    library = build({**kernels, **functions}, read_host_target(2))
    for name, spec in (("first", first), ("second", second), ("tail", tail), ("added", added)):
        assert_equals_parts(library[name], spec, isa)


def test_a_kernel_of_one_part_has_its_code_in_place() -> None:
    from bitwright.codegen.linear.tile_functions import TileFunctions

    shared = TileFunctions()
    build_linear(LinearSpec(64, 96, LinearScheme.parse("u4g32a8"), rows=1), AVX2, shared=shared)
    assert not shared.functions()


def test_parts_that_read_the_same_activations_share_them() -> None:
    names = [a.name for a in linear_arguments(spec_of(MIXES[0], 1, False), AVX2)]
    assert names == ["x8", "scale", "sum", "codes", "scales", "codes_1", "scales_1", "y"]
    names = [a.name for a in linear_arguments(spec_of(MIXES[2], 1, True), AVX2)]
    assert names[:6] == ["x8", "scale", "sum", "x8_1", "scale_1", "sum_1"] and names[-2:] == ["bias", "y"]


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("tiles", [(3, 4), (1, 1, 1), (7,), (12, 1)])
def test_threads_share_bytes_and_compute_every_tile_once(tiles: tuple[int, ...], threads: int) -> None:
    from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

    from bitwright.codegen.linear.kernel import _tiles_until

    sizes = [1152 * (number + 1) for number in range(len(tiles))]
    total = sum(count * size for count, size in zip(tiles, sizes, strict=True))
    shares = [0] * threads
    before = 0
    for count, size in zip(tiles, sizes, strict=True):
        bounds = [
            [int(_tiles_until(at, T.int64(t), threads, total, before, size, count)) for at in (0, 1)]
            for t in range(threads)
        ]
        assert [tile for start, end in bounds for tile in range(start, end)] == list(range(count))
        for thread, (start, end) in enumerate(bounds):
            shares[thread] += (end - start) * size
        before += count * size
    assert max(shares) - total / threads <= max(sizes) * len(tiles)


def test_parts_must_fit_together() -> None:
    four, three = (LinearSpec(64, inputs, LinearScheme.parse("u4g32a8")) for inputs in (64, 96))
    with pytest.raises(InternalError, match="do not fit together"):
        MixedSpec((four, three))


def test_the_part_without_a_kernel_is_named() -> None:
    parts = tuple(LinearSpec(64, 96, LinearScheme.parse(name)) for name in ("u4g32a8", "u4g64a8"))
    with pytest.raises(UnsupportedError, match="u4g64a8 kernel for 64 x 96"):
        build_linear(MixedSpec(parts), AVX2)
