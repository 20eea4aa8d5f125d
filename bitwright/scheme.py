"""Schemes: how the numbers of one tensor are stored and computed with.

A scheme prints and parses as a short name:

========== =====================================================================================================
``u4g32``  uniform 4-bit weights, one fp16 scale per group of 32 along the input dimension, symmetric
``u4g32z`` the same with an 8-bit zero point per group (asymmetric)
``u4row``  one scale per output row
``c3g64``  codebook: a 3-bit code looks up one of the matrix's 8 int8 values, times an fp16 scale per group of 64
``f16``    weights stored in half precision (``f32``: single)
``a8``     activations quantized to int8 at run time, one scale per token and weight group
``a16``    activations quantized the same way to 16 bits (floating point where the weights are)
``k16``    a K cache in half precision (``k32``: single); ``v16``, ``v32`` likewise for V
``k4g32``  a K cache of 4-bit codes: in every token, 32 elements of a head share a scale and a zero point
``v3row``  a V cache of 3-bit codes with one scale and zero point per token and head
``k4rowm`` keys that a calibrated map evens out before they are quantized, and the first token exact as well
``v4rowm`` values that a calibrated map evens out
``k5-3rowm`` mapped keys: 5 bits for the half of the mapped elements that varies most, 3 bits for the other
========== =====================================================================================================

A linear layer's scheme is a weight scheme followed by an activation scheme: ``u4g32a8``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from bitwright.errors import UsageError

BITS = (2, 3, 4, 5, 6, 8)
CODEBOOK_BITS = (2, 3, 4, 5, 6)
EVEN_CODEBOOK_BITS = 4
"""Widths up to it have codebooks of even values. That costs 1 % of the squared error of weights at most (3 % at 5)."""
GROUPS = (32, 64, 128)
SCALE_BYTES = 2
ZERO_POINT_BYTES = 1
AFFINE_BYTES = 2
"""Scale and zero point of a cache's group, together."""
CODEBOOK_BYTES = 64
"""A table of values is stored as one cache line whatever its width: what a kernel loads."""

_WEIGHT = re.compile(r"(?P<kind>[uc])(?P<bits>\d+)(?:g(?P<group>\d+)|(?P<row>row))(?P<zero>z?)|f(?P<float>\d+)")
_ACTIVATION = re.compile(r"a(?P<bits>\d+)")
_CACHE = re.compile(
    r"(?P<tensor>[kv])(?P<bits>\d+)(?:-(?P<low>\d+))?(?:(?:g(?P<group>\d+)|(?P<row>row))(?P<mapped>m?)(?:r(?P<recent>\d+))?)?"
)
CACHE_GROUPS = (16, 32, 64, 128)
CACHE_RUNS = (32, 64, 128)

_EXAMPLES = "u4g32a8, u4g32za16, u3g64a8, u8rowa8, c4g32a8, f16, f32"


def _malformed(text: str, limit: str) -> UsageError:
    return UsageError(f"'{text}' is not a scheme", limit=limit, remedy=f"use a name such as {_EXAMPLES}")


@dataclass(frozen=True, order=True)
class WeightScheme:
    """Storage of one weight matrix of shape (outputs, inputs).

    Attributes:
        kind: ``uniform`` (packed integer codes with scales), ``codebook`` or ``float``.
        bits: width of one code; 16 or 32 for floats.
        group: inputs that share a scale; 0 means the whole row.
        symmetric: no zero points: a code c stands for (c - 2**(bits-1)) * scale, or for codebook[c] * scale. Otherwise
            (c - zero) * scale.
    """

    kind: Literal["uniform", "codebook", "float"]
    bits: int
    group: int = 0
    symmetric: bool = True

    def __post_init__(self) -> None:
        if self.kind == "float":
            if self.bits not in (16, 32) or self.group or not self.symmetric:
                raise _malformed(f"f{self.bits}", "float weights are f16 or f32")
            return
        if self.kind == "codebook":
            self._check_codebook()
        elif self.bits not in BITS:
            raise _malformed(self.name, f"uniform widths are {', '.join(map(str, BITS))} bits")
        if self.group not in (0, *GROUPS):
            raise _malformed(self.name, f"group sizes are {', '.join(map(str, GROUPS))} or a whole row")

    def _check_codebook(self) -> None:
        widths = ", ".join(map(str, CODEBOOK_BITS))
        if self.bits == 8:
            raise UsageError(
                f"'{self.name}' has a codebook of 256 int8 values, which is every value there is",
                limit=f"codebook widths are {widths} bits",
                remedy=f"use u8{self.name[2:]}",
            )
        if self.bits not in CODEBOOK_BITS:
            raise _malformed(self.name, f"codebook widths are {widths} bits")
        if not self.symmetric:
            raise _malformed(self.name, "a codebook has no zero points: its values may lie anywhere")

    @classmethod
    def parse(cls, text: str) -> WeightScheme:
        match = _WEIGHT.fullmatch(text)
        if not match:
            limit = "a weight scheme is u<bits>g<group>[z], u<bits>row[z], c<bits>g<group>, c<bits>row, f16 or f32"
            raise _malformed(text, limit)
        if match["float"]:
            return cls("float", int(match["float"]))
        if match["group"] and int(match["group"]) == 0:
            raise _malformed(text, f"group sizes are {', '.join(map(str, GROUPS))} or row")
        kind: Literal["uniform", "codebook"] = "uniform" if match["kind"] == "u" else "codebook"
        return cls(kind, int(match["bits"]), int(match["group"] or 0), not match["zero"])

    @property
    def name(self) -> str:
        if self.kind == "float":
            return f"f{self.bits}"
        letter = "u" if self.kind == "uniform" else "c"
        return f"{letter}{self.bits}{f'g{self.group}' if self.group else 'row'}{'' if self.symmetric else 'z'}"

    def __str__(self) -> str:
        return self.name

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_codebook(self) -> bool:
        return self.kind == "codebook"

    @property
    def operand_bits(self) -> int:
        """Width of the unsigned integers that kernels multiply: the codes', or 8 when those look up bytes."""
        return 8 if self.is_codebook else self.bits

    @property
    def value_step(self) -> int:
        """Values of a codebook are multiples of it: few values are even numbers.

        Half of an even value fits the byte products of processors without VNNI, whose sums of two saturate at 16 bits.
        """
        return 2 if self.is_codebook and self.bits <= EVEN_CODEBOOK_BITS else 1

    @property
    def centre(self) -> int:
        """The operand that stands for zero in a scheme without zero points."""
        return int(2 ** (self.operand_bits - 1))

    def groups(self, inputs: int) -> int:
        """Number of scales in one row of ``inputs`` weights."""
        return inputs // self.group if self.group else 1

    def storage_bytes(self, outputs: int, inputs: int) -> int:
        """Bytes of codes, scales, zero points and codebook of ``outputs`` x ``inputs`` weights, no padding rows."""
        if self.is_float:
            return outputs * inputs * self.bits // 8
        per_group = SCALE_BYTES + (0 if self.symmetric else ZERO_POINT_BYTES)
        codebook = CODEBOOK_BYTES if self.is_codebook else 0
        return outputs * (inputs * self.bits // 8 + self.groups(inputs) * per_group) + codebook


@dataclass(frozen=True, order=True)
class ActivationScheme:
    """How a linear layer reads its input: 8 or 16 bits, quantized per token and group at run time.

    Float weights multiply activations that stay floating point, which is called 16 as well.
    """

    bits: Literal[8, 16] = 16

    def __post_init__(self) -> None:
        if self.bits not in (8, 16):
            raise _malformed(self.name, "activations are a8 (8 bits) or a16 (16 bits)")

    @classmethod
    def parse(cls, text: str) -> ActivationScheme:
        match = _ACTIVATION.fullmatch(text)
        if not match:
            raise _malformed(text, "activations are a8 or a16")
        return cls(int(match["bits"]))  # type: ignore[arg-type]  # __post_init__ checks the value

    @property
    def name(self) -> str:
        return f"a{self.bits}"

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, order=True)
class LinearScheme:
    """Scheme of a linear layer, embedding or lm_head: weights and the activation they multiply."""

    weight: WeightScheme
    activation: ActivationScheme = ActivationScheme(16)

    def __post_init__(self) -> None:
        if self.weight.is_float and self.activation.bits != 16:
            raise _malformed(self.name, "float weights multiply float activations")

    @classmethod
    def parse(cls, text: str) -> LinearScheme:
        text = text.strip()
        cut = text.rfind("a")
        if cut <= 0:
            return cls(WeightScheme.parse(text))
        return cls(WeightScheme.parse(text[:cut]), ActivationScheme.parse(text[cut:]))

    @property
    def name(self) -> str:
        return self.weight.name if self.weight.is_float else f"{self.weight.name}{self.activation.name}"

    def __str__(self) -> str:
        return self.name

    @property
    def terms(self) -> Literal[0, 1, 2]:
        """Int8 numbers that an activation is read as; 0: it is read as a float."""
        if self.weight.is_float:
            return 0
        return 1 if self.activation.bits == 8 else 2

    def with_activation(self, bits: Literal[8, 16]) -> LinearScheme:
        return replace(self, activation=ActivationScheme(bits))


@dataclass(frozen=True, order=True)
class CacheScheme:
    """Storage of one layer's K or V cache.

    Attributes:
        tensor: ``k`` or ``v``.
        bits: 16 or 32 for floats; else the width of one code.
        group: elements of a token's head that share a scale and a zero point; 0 means the whole head (and floats).
        mapped: packed caches only. A calibrated map per head spreads what matters evenly over the elements before they
            are quantized (``keymap.py``). Of keys the first token, which many heads attend to most, is kept in half
            precision too. What maps values is undone behind the attention.
        low: keys mapped as whole heads only: bits of the half of the elements that varies less; 0: all have ``bits``.
        recent: packed caches only. A token sees those of its own run of so many tokens (positions with the same
            quotient) in half precision, and packed ones before it; 0: all packed. They lie in a ring beside the others.
    """

    tensor: Literal["k", "v"]
    bits: int = 16
    group: int = 0
    mapped: bool = False
    low: int = 0
    recent: int = 0

    def __post_init__(self) -> None:
        known = (self.bits in BITS and self.group in (0, *CACHE_GROUPS)) or (self.bits in (16, 32) and not self.group)
        if (self.mapped or self.recent) and self.is_float:
            known = False
        if self.recent not in (0, *CACHE_RUNS):
            known = False
        if self.low:
            known = known and self.low in BITS and self.low < self.bits and self.tensor == "k" and self.mapped
            known = known and not self.group
        if self.tensor not in ("k", "v") or not known:
            raise _no_cache_scheme(self.name)

    @classmethod
    def parse(cls, text: str) -> CacheScheme:
        match = _CACHE.fullmatch(text.strip())
        if not match or (int(match["bits"]) in BITS) != bool(match["group"] or match["row"]):
            raise _no_cache_scheme(text)
        if match["row"] is None and match["group"] is not None and int(match["group"]) == 0:
            raise _no_cache_scheme(text)
        tensor: Literal["k", "v"] = "k" if match["tensor"] == "k" else "v"
        bits, group, low, recent = (int(match[part] or 0) for part in ("bits", "group", "low", "recent"))
        return cls(tensor, bits, group, bool(match["mapped"]), low, recent)

    @property
    def name(self) -> str:
        if self.bits in (16, 32):
            return f"{self.tensor}{self.bits}"
        width = f"{self.bits}-{self.low}" if self.low else str(self.bits)
        group = f"g{self.group}" if self.group else "row"
        return f"{self.tensor}{width}{group}{'m' if self.mapped else ''}{f'r{self.recent}' if self.recent else ''}"

    def __str__(self) -> str:
        return self.name

    @property
    def is_float(self) -> bool:
        return self.bits >= 16

    def groups(self, head_dim: int) -> int:
        """Scales of one head of one token."""
        return head_dim // self.group if self.group else 1

    def bytes_per_token(self, heads: int, head_dim: int) -> int:
        """Exact bytes of one token, all heads: codes, and a word of scale and zero point per group."""
        if self.is_float:
            return heads * head_dim * self.bits // 8
        if self.low:
            return heads * (head_dim * (self.bits + self.low) // 16 + AFFINE_BYTES)
        # Keys of 3 and 5 bits have a plane whose lines hold 32 elements: what is missing is stored as zeros.
        padding = -head_dim % 32 if self.tensor == "k" and self.bits % 2 else 0
        codes = (head_dim + padding) * self.bits // 8
        return heads * (codes + self.groups(head_dim) * AFFINE_BYTES)

    def fixed_bytes(self, heads: int, head_dim: int) -> int:
        """Bytes beside those of the tokens: the exact first token of mapped keys, and the recent tokens."""
        return heads * head_dim * 2 * (int(self.keeps_first) + self.recent)

    def bytes_at(self, heads: int, head_dim: int, context: int) -> int:
        """Bytes of a cache with room for ``context`` tokens (tensors end on whole lines and blocks); 0 for none."""
        return self.fixed_bytes(heads, head_dim) + context * self.bytes_per_token(heads, head_dim) if context else 0

    @property
    def keeps_first(self) -> bool:
        """The first token is kept in half precision too."""
        return self.mapped and self.tensor == "k"


def _no_cache_scheme(text: str) -> UsageError:
    widths, groups = ", ".join(map(str, BITS)), ", ".join(map(str, CACHE_GROUPS))
    return UsageError(
        f"'{text}' is not a cache scheme",
        limit=f"k or v, then 16 or 32, or {widths} bits with g and {groups}, or with row, and m for mapped, and r and "
        f"{', '.join(map(str, CACHE_RUNS))} for recent tokens kept exact; "
        "for keys also two widths, the larger first, with rowm",
        remedy="use a name such as k16, k8g32, k4rowm, k5-3rowm, v4g32, v4row or v4rowmr32",
    )
