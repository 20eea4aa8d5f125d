"""The instruction sets that kernels are generated for.

An ``Isa`` is what the generators need to know about a machine: how many 32-bit lanes a vector register has, how many
registers there are, which instruction multiplies and adds bytes, and which cache prefetches belong in. Everything else
about the machine is the target's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Isa:
    """One instruction set.

    Attributes:
        name: what users and records call it.
        lanes: 32-bit lanes of a vector register; a packed line is ``4 * lanes`` bytes.
        registers: vector registers, which bound the register blocks.
        dot: the byte dot product: ``vnni`` (vpdpbusd), ``maddubs`` (vpmaddubsw + vpmaddwd) or ``portable`` (plain IR).
        half: there is an instruction that widens half to single precision.
        requires: alternatives; one of these sets of LLVM features must be present.
        permute: there is an instruction that looks up every byte of a register in another register (vpermb).
        scale_exponent: there is one that multiplies floats by powers of two (vscalefps).
        prefetch_level: of the cache that is asked for what is needed much later. Few lines can be on their way to the
            nearest cache at a time, to the next one more; see ``NEAREST_CACHE``.
    """

    name: str
    lanes: int
    registers: int
    dot: Literal["vnni", "maddubs", "portable"]
    half: bool
    requires: tuple[frozenset[str], ...]
    permute: bool = False
    scale_exponent: bool = False
    prefetch_level: Literal[1, 2] = 2

    def runs_with(self, features: frozenset[str]) -> bool:
        return any(needed <= features for needed in self.requires)


_AVX2 = frozenset({"avx2", "fma", "f16c"})

_AVX512VNNI = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512vnni", "bmi"})

AVX512VBMI = Isa("avx512vbmi", 16, 32, "vnni", True, (_AVX512VNNI | {"avx512vbmi"},), permute=True, scale_exponent=True)
AVX512VNNI = Isa("avx512vnni", 16, 32, "vnni", True, (_AVX512VNNI,), scale_exponent=True)
AVXVNNI = Isa("avxvnni", 8, 16, "vnni", True, (_AVX2 | {"avxvnni"}, _AVX2 | {"avx512vl", "avx512vnni"}))
AVX2 = Isa("avx2", 8, 16, "maddubs", True, (_AVX2,))
GENERIC = Isa("generic", 8, 16, "portable", False, (frozenset(),))

ISAS = (AVX512VBMI, AVX512VNNI, AVXVNNI, AVX2, GENERIC)
"""Best first."""

NEAREST_CACHE = frozenset({"znver3", "znver5"})
"""CPU models that were measured to stream well with prefetches into the nearest cache. On ``znver4`` these reach half
of the bandwidth that prefetches into the second cache do (decision 54), and that is what other models get."""


def select_isa(features: frozenset[str], cpu: str = "") -> Isa:
    """The best instruction set that a machine with these LLVM features executes; ``generic`` runs everywhere.

    Args:
        cpu: LLVM's model of the CPU that kernels shall be fast on, where code is generated.
    """
    return tuned_for(next(isa for isa in ISAS if isa.runs_with(features)), cpu)


def tuned_for(isa: Isa, cpu: str) -> Isa:
    return replace(isa, prefetch_level=1) if cpu in NEAREST_CACHE else isa
