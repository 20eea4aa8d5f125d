"""The machine code of linear kernels for targets that this machine may not execute."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest

from bitwright.codegen.isa import AVX2, AVX512VBMI, AVX512VNNI, AVXVNNI, GENERIC, Isa
from bitwright.codegen.linear import LinearSpec, build_linear
from bitwright.scheme import LinearScheme

SPILL = re.compile(r"(%rsp\)|-?\d+\(%rbp\)).*%zmm|%zmm.*(%rsp\)|\(%rbp\))")


def assembly(spec: LinearSpec, isa: Isa, **target: Any) -> str:
    import tvm

    from bitwright.codegen.builder import build

    library = build(build_linear(spec, isa), tvm.target.Target({"kind": "llvm", "num-cores": 2, **target}))
    return str(library.mod.inspect_source("asm"))


def blocks(text: str) -> list[str]:
    """Basic blocks: the text between labels."""
    return re.split(r"^\.?L?\w+:$", text, flags=re.MULTILINE)


@pytest.mark.parametrize("rows", [1, None], ids=["decode", "prefill"])
@pytest.mark.parametrize("name", ["u2g32a8", "u3g32a8", "u4g32a8", "u6g32a8", "u8g32a8"])
def test_avx512_uses_vnni_and_spills_nothing_in_its_loop(name: str, rows: int | None) -> None:
    spec = LinearSpec(1536, 576, LinearScheme.parse(name), rows=rows)  # type: ignore[arg-type]
    hot = [block for block in blocks(assembly(spec, AVX512VNNI, mcpu="znver4")) if "vpdpbusd" in block]
    assert hot
    for block in hot:
        assert re.search(r"vpdpbusd\s.*%zmm", block)
        assert not SPILL.search(block)


@pytest.mark.parametrize("rows", [1, None], ids=["decode", "prefill"])
@pytest.mark.parametrize(
    ("name", "isa", "instruction"),
    [
        ("c3g32a8", AVX512VNNI, "vpshufb"),
        ("c4g32a8", AVX512VBMI, "vpermb"),
        ("c6g32a8", AVX512VNNI, "vpshufb"),
        ("c6g32a8", AVX512VBMI, "vpermb"),
    ],
)
def test_codebooks_are_shuffles_of_registers(name: str, isa: Isa, instruction: str, rows: int | None) -> None:
    spec = LinearSpec(1536, 576, LinearScheme.parse(name), rows=rows)  # type: ignore[arg-type]
    hot = [block for block in blocks(assembly(spec, isa, mcpu="znver4")) if instruction in block]
    assert hot
    for block in hot:
        assert re.search(rf"{instruction}\s.*%zmm", block)
        assert not SPILL.search(block)


@pytest.mark.parametrize("rows", [1, None], ids=["decode", "prefill"])
def test_spilled_vectors_lie_on_cache_lines(rows: int | None) -> None:
    """Sixteen registers do not hold what this kernel computes; LLVM alone would align the stack to 16 bytes."""
    spec = LinearSpec(1536, 576, LinearScheme.parse("u3g32a16"), rows=rows)  # type: ignore[arg-type]
    hot = [function for function in assembly(spec, AVX2, mcpu="znver3").split("@function") if "vpmaddubsw" in function]
    assert hot
    for function in hot:
        moves = re.findall(r"(vmov\w+)\s+(?:%ymm\d+, -?\d*\(%rsp\)|-?\d*\(%rsp\), %ymm\d+)", function)
        assert "andq\t$-64, %rsp" in function
        assert moves and set(moves) <= {"vmovaps", "vmovapd", "vmovdqa"}


@pytest.mark.parametrize("name", ["u2g32a8", "u3g32a8", "u4g32za8", "u5g32a8", "u6g32a8", "u8g32a8", "c5g32a8"])
def test_codes_are_read_in_the_order_of_memory(name: str) -> None:
    """The lines of 64 bytes of a span, each once, from the lowest address to the highest."""
    spec = LinearSpec(1536, 576, LinearScheme.parse(name), rows=1)
    layout = spec.layout(AVX512VNNI)
    lines = layout.blocks * layout.weight.bits
    loads = [
        [int(offset or 0) for offset in re.findall(r"vmovdq[au]\w*\s+(-?\d*)\(%r\w+(?:,%r\w+)?(?:,\d)?\), %zmm", block)]
        for block in blocks(assembly(spec, AVX512VNNI, mcpu="znver4"))
        if "vpdpbusd" in block
    ]
    for offsets in loads:
        assert {b - a for a, b in pairwise(offsets)} == {64}
        assert len(offsets) == lines
    assert loads


@pytest.mark.parametrize("mcpu", ["alderlake", "znver4"])
def test_vnni_of_256_bits(mcpu: str) -> None:
    text = assembly(LinearSpec(64, 64, LinearScheme.parse("u4g32a8"), rows=1), AVXVNNI, mcpu=mcpu)
    assert re.search(r"vpdpbusd\s.*%ymm", text)
    assert not re.search(r"vpdpbusd\s.*%zmm", text)


@pytest.mark.parametrize("rows", [1, None], ids=["decode", "prefill"])
@pytest.mark.parametrize("name", ["u4g32za8", "u3g64a16", "f16"])
@pytest.mark.parametrize("triple", ["aarch64-linux-gnu", "x86_64-linux-gnu"])
def test_portable_kernels_compile_anywhere_without_half_precision_helpers(
    triple: str, name: str, rows: int | None
) -> None:
    """Without an instruction LLVM would call a helper for every single half that is widened."""
    spec = LinearSpec(72, 128, LinearScheme.parse(name), rows=rows)  # type: ignore[arg-type]
    text = assembly(spec, GENERIC, mtriple=triple)
    assert not re.search(r"\b(callq?|bl|jmp|b)\s+__(extendhfsf2|gnu_h2f_ieee)", text)
