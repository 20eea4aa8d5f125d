"""A random linear layer: packed tensors, activations, the oracle's answer and the kernel's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitwright.codegen.isa import AVX2, AVX512VBMI, AVX512VNNI, AVXVNNI, GENERIC, Isa
from bitwright.codegen.linear import LinearSpec, build_linear
from bitwright.codegen.packing import dequantize, pack, pack_float
from bitwright.codegen.reference import linear as reference

Array = NDArray[Any]
GENERIC_WIDE = Isa("generic16", 16, 32, "portable", False, (frozenset(),))
EVERY_ISA = (AVX2, AVXVNNI, AVX512VNNI, AVX512VBMI, GENERIC, GENERIC_WIDE)


@cache
def host_features() -> frozenset[str]:
    from bitwright.codegen import builder

    return builder.host_features()


def missing(isa: Isa) -> str | None:
    """Why kernels of ``isa`` cannot run here, or None."""
    if isa.runs_with(host_features()):
        return None
    return f"this machine lacks one of {sorted(min(isa.requires, key=len) - host_features())}, which {isa.name} needs"


def tensor(array: Array) -> Any:
    import tvm

    return tvm.runtime.tensor(np.ascontiguousarray(array))


@cache
def compiled(spec: LinearSpec, isa: Isa) -> Any:
    from bitwright.codegen.builder import build, read_host_target

    return build(build_linear(spec, isa), read_host_target())["linear"]


@dataclass(frozen=True)
class Layer:
    """Tensors of one layer; ``codes`` and ``zeros`` are None for float weights, ``zeros`` is filled in if symmetric.

    Codes of a codebook are looked up: integers whose zero point is 0.
    """

    packed: dict[str, Array]
    weights: Array
    codes: Array | None
    scales: Array | None
    zeros: Array | None
    bias: Array | None


def random_layer(spec: LinearSpec, isa: Isa, seed: int = 0) -> Layer:
    """Full-range codes, scales of both signs (GGUF has negative ones), full-range zero points."""
    rng, weight, layout = np.random.default_rng(seed), spec.scheme.weight, spec.layout(isa)
    bias = rng.standard_normal(spec.outputs).astype(np.float32) if spec.bias else None
    if weight.is_float:
        packed = pack_float(rng.standard_normal((spec.outputs, spec.inputs)).astype(np.float32), layout)
        return Layer(packed, dequantize(packed, layout), None, None, None, bias)
    grouped = (spec.outputs, layout.groups)
    codes = rng.integers(0, 1 << weight.bits, (spec.outputs, spec.inputs)).astype(np.uint8)
    scales = (rng.standard_normal(grouped) * 0.01).astype(np.float16)
    if weight.is_codebook:
        step = weight.value_step
        codebook = rng.permutation(np.arange(-128, 128, step))[: 1 << weight.bits].astype(np.int8)
        codebook[:2] = -128, 128 - step
        packed = pack(codes, scales, None, layout, codebook)
        values = reference.look_up(codes, codebook)
        return Layer(packed, dequantize(packed, layout), values, scales, np.zeros(grouped, np.int64), bias)
    zeros = None if weight.symmetric else rng.integers(0, 256, grouped).astype(np.uint8)
    packed = pack(codes, scales, zeros, layout)
    if zeros is None:
        zeros = np.full(grouped, 1 << (weight.bits - 1), np.uint8)
    return Layer(packed, dequantize(packed, layout), codes, scales, zeros, bias)


def relative_error(spec: LinearSpec, isa: Isa, x: Array, layer: Layer) -> float:
    """Largest |kernel - oracle| relative to the sum of the magnitudes of the terms (see ``reference.TOLERANCE``)."""
    layout, bias = spec.layout(isa), layer.bias
    if terms := spec.scheme.terms:
        assert layer.codes is not None and layer.scales is not None and layer.zeros is not None
        x8, scale, total = reference.quantize_activation(x, layout.group, terms)
        activations = (x8, scale, total)
        expected = reference.linear_packed(x8, scale, layer.codes, layer.scales, layer.zeros, bias)
    else:
        activations = (x,)
        expected = reference.linear(x, layer.weights, bias)
    # NaN shows an element that the kernel does not write; rows before and after the result must not be touched.
    guarded = np.full((x.shape[0] + 2, spec.outputs), np.nan, np.float32)
    result = tensor(guarded[1:-1])
    residual = np.random.default_rng(3).standard_normal(expected.shape).astype(np.float32) * 8
    arguments = [*activations, *layer.packed.values(), *(() if bias is None else (bias,))]
    if spec.residual:
        arguments.append(residual)
        expected = expected + residual
    compiled(spec, isa)(*map(tensor, arguments), result)
    magnitude = reference.magnitude(x, layer.weights, bias) + (np.abs(residual) if spec.residual else 0)
    if layer.codes is not None:
        assert layer.scales is not None and layer.zeros is not None
        # The kernel sums code * x and zero * x apart from each other; what is looked up is stored plus 128.
        operands = layer.codes + 128 if spec.scheme.weight.is_codebook else layer.codes
        unsigned = np.repeat(np.abs(layer.scales.astype(np.float64)), layout.group, 1) * operands
        magnitude = np.maximum(magnitude, reference.magnitude(x, unsigned, bias))
    return float(np.max(np.abs(result.numpy() - expected) / magnitude))
