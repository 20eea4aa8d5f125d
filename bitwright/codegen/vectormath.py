"""Vector arithmetic in TensorIR: loads, stores, reductions and elementary functions on ``float32xL`` values.

Everything is plain TensorIR arithmetic, so it compiles for any LLVM target; ``lanes`` may be any power of two and 1
means a scalar. Wide vectors (e.g. 32 lanes on an 8-lane machine) are split by LLVM, which is how loops are unrolled.
Functions store intermediate values in the surrounding IRBuilder frame: call them in a kernel body.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import Registers, load, loop, stack, store, vector

LOWEST = -3.4028234e38
"""Most negative finite float32: a masked score. Finite, so that differences of two masked scores are not NaN."""

LOG2E = 1.4426950408889634
_LN2_HIGH = 0.693359375
_LN2_LOW = -2.12194440e-4
_ROUND = 12582912.0  # 1.5 * 2**23: adding it rounds to an integer that stands in the low mantissa bits
_ROUND_BITS = 0x4B400000
_EXP_LOW = -87.33654  # log(2**-126): below it exp is subnormal and flushed to zero
_EXP_HIGH = 88.37626  # 127.5 * log(2): above it the scaling 2**n leaves the float32 range
# Cephes expf (S. L. Moshier, netlib cephes/single/expf.c): exp(r) = 1 + r + r^2 * P(r) on |r| <= log(2)/2.
_EXP_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
# Fitted for this project to 2**r on |r| <= 1/2, by reweighted least squares: relative error 2.6e-6 (2**-18.5).
_EXP2_POLYNOMIAL = (0.0095701003, 0.055917859, 0.24024744, 0.69312179, 0.99999928)
# The same with one more power: 7.5e-8, about what single precision can hold.
_EXP2_FINE = (0.0013276470, 0.0096755410, 0.055507135, 0.24022120, 0.69314694, 1.00000012)
_EXP2_LOW = -126.0
_SILU_LOW = -87.0
# Numerical Recipes in C, 2nd ed., section 6.2 (erfcc): fractional error below 1.2e-7 everywhere.
_ERFC_POLYNOMIAL = (
    0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196, 1.00002368,
    -1.26551223,
)  # fmt: skip


def splat(value: Any, lanes: int) -> Any:
    """A float32 constant or scalar expression in every lane."""
    scalar = T.float32(value) if isinstance(value, int | float) else value
    return scalar if lanes == 1 else T.broadcast(scalar, lanes)


def load_float(buffer: Any, indices: Sequence[Any], lanes: int) -> Any:
    """``lanes`` consecutive elements of the last axis of ``buffer``, widened to float32."""
    value = load(buffer, indices, lanes)
    return value if buffer.dtype == "float32" else T.cast(value, vector("float32", lanes))


def store_float(buffer: Any, value: Any, indices: Sequence[Any], lanes: int) -> None:
    """Write float32 ``value`` to ``lanes`` consecutive elements of the last axis, rounded to the buffer's type."""
    store(buffer, value if buffer.dtype == "float32" else T.cast(value, vector(buffer.dtype, lanes)), indices, lanes)


def hold(value: Any) -> Any:
    """Evaluate ``value`` once, here, and return a reference to it.

    A local variable and not ``T.Bind``: TVM inlines bindings, and a value used in many places (every step of a
    polynomial) would then grow exponentially.
    """
    register = Registers(1, str(value.ty.dtype))
    register[0] = value
    return register[0]


def spans(width: int, lanes: int) -> list[tuple[int, int]]:
    """Cover ``width`` elements with (offset, lanes) pieces: full vectors, then smaller powers of two."""
    pieces = []
    offset = 0
    while offset < width:
        while lanes > width - offset:
            lanes //= 2
        pieces.append((offset, lanes))
        offset += lanes
    return pieces


def for_spans(width: int, lanes: int, body: Callable[[Any, int], None]) -> None:
    """Emit ``body(offset, lanes)`` over ``width`` elements: one loop of full vectors, then the tail unrolled."""
    full = width // lanes
    if full == 1:
        body(T.int64(0), lanes)
    elif full:
        with loop(full) as step:
            body(step * lanes, lanes)
    for offset, piece in spans(width - full * lanes, lanes):
        body(T.int64(full * lanes + offset), piece)


def reduce_lanes(value: Any, lanes: int, combine: Callable[[Any, Any], Any]) -> Any:
    """Fold the lanes of ``value`` pairwise with ``combine``; returns a scalar."""
    while lanes > 2:
        lanes //= 2
        whole = hold(value)
        half = vector("float32", lanes)
        value = combine(T.vectorlow(half, whole), T.vectorhigh(half, whole))
    if lanes == 1:
        return hold(value)
    # Half of a pair would be a one-element vector to LLVM, not a scalar: read both through memory (no store is left).
    pair = stack((2,), "float32")
    store(pair, value, [0], 2)
    return hold(combine(pair[0], pair[1]))


def add(left: Any, right: Any) -> Any:
    return left + right


def maximum(left: Any, right: Any) -> Any:
    return T.max(left, right)


def exp(value: Any, lanes: int, *, nonpositive: bool = False) -> Any:
    """exp of float32 lanes, relative error about 1e-7.

    Results below 2**-126 are 0, above 2.4e38 infinity; NaN stays NaN. ``nonpositive`` promises arguments <= 0 or NaN.
    """
    x = hold(value)
    low, high = splat(_EXP_LOW, lanes), splat(_EXP_HIGH, lanes)
    clamped = hold(T.Select(x < low, low, x))  # Select keeps NaN: the comparison is false
    if not nonpositive:
        clamped = hold(T.Select(clamped > high, high, clamped))
    shifted = hold(clamped * splat(LOG2E, lanes) + splat(_ROUND, lanes))
    # The rounded integer is read from the bits: TVM would cancel adding and subtracting the constant, and a float to
    # integer conversion is undefined for NaN.
    integer = hold(T.reinterpret(shifted, dtype=vector("int32", lanes)) - _int_splat(_ROUND_BITS, lanes))
    power = hold(T.cast(integer, vector("float32", lanes)))
    r = hold(clamped - power * splat(_LN2_HIGH, lanes) - power * splat(_LN2_LOW, lanes))
    polynomial = hold(_horner(_EXP_POLYNOMIAL, r, lanes) * (r * r) + r + splat(1.0, lanes))
    exponent = T.shift_left(integer, _int_splat(23, lanes)) + _int_splat(0x3F800000, lanes)
    scaled = T.reinterpret(exponent, dtype=vector("float32", lanes))  # 2**integer
    result = hold(T.Select(x < low, splat(0.0, lanes), polynomial * scaled))
    return result if nonpositive else hold(T.Select(x > high, splat(float("inf"), lanes), result))


def exp2(value: Any, lanes: int, *, fine: bool = False) -> Any:
    """2**x of float32 lanes <= 127, relative error below 3e-6; x below -126 counts as -126. Not for NaN.

    ``fine``: error below 2e-7, for one more instruction.
    """
    x = hold(T.max(value, splat(_EXP2_LOW, lanes)))
    word = vector("int32", lanes)
    # The low bits of the sum are the rounded integer, which goes to the exponent of the polynomial.
    bits = T.reinterpret(x + splat(_ROUND, lanes), dtype=word)
    fraction = hold(x - T.nearbyint(x))
    power = T.reinterpret(_horner(_EXP2_FINE if fine else _EXP2_POLYNOMIAL, fraction, lanes), dtype=word)
    return hold(T.reinterpret(power + T.shift_left(bits, _int_splat(23, lanes)), dtype=vector("float32", lanes)))


def sigmoid(value: Any, lanes: int) -> Any:
    """1 / (1 + exp(-x)), absolute error about 1e-7."""
    return splat(1.0, lanes) / (splat(1.0, lanes) + exp(splat(0.0, lanes) - value, lanes))


def silu(value: Any, lanes: int) -> Any:
    """x * sigmoid(x), absolute error about 1e-7 * (1 + |x|); below -87, where it is smaller than 1e-35, that of -87."""
    x = hold(value)
    low = splat(_SILU_LOW, lanes)
    clamped = hold(T.Select(x < low, low, x))  # Select keeps NaN
    return clamped / (splat(1.0, lanes) + exp2(clamped * splat(-LOG2E, lanes), lanes, fine=True))


def tanh(value: Any, lanes: int) -> Any:
    """1 - 2 / (exp(2x) + 1), absolute error about 2e-7."""
    return splat(1.0, lanes) - splat(2.0, lanes) / (exp(value * splat(2.0, lanes), lanes) + splat(1.0, lanes))


def gelu_tanh(value: Any, lanes: int) -> Any:
    """0.5 x (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x^3), computed as x * sigmoid(2u): no cancellation."""
    x = hold(value)
    u = x * (splat(0.7978845608028654, lanes) + splat(0.035677408136300125, lanes) * (x * x))
    return x * sigmoid(u * splat(2.0, lanes), lanes)


def gelu_erf(value: Any, lanes: int) -> Any:
    """0.5 x erfc(-x / sqrt(2)), absolute error about 2e-7 * (1 + |x|)."""
    x = hold(value)
    z = hold(T.abs(x) * splat(0.7071067811865476, lanes))
    t = hold(splat(1.0, lanes) / (splat(1.0, lanes) + z * splat(0.5, lanes)))
    tail = hold(t * exp(_horner(_ERFC_POLYNOMIAL, t, lanes) - z * z, lanes))
    erfc = T.Select(x < splat(0.0, lanes), tail, splat(2.0, lanes) - tail)
    return x * splat(0.5, lanes) * erfc


def relu(value: Any, lanes: int) -> Any:
    """max(x, 0); NaN stays NaN."""
    x = hold(value)
    return T.Select(x < splat(0.0, lanes), splat(0.0, lanes), x)


def _int_splat(value: int, lanes: int) -> Any:
    return T.int32(value) if lanes == 1 else T.broadcast(T.int32(value), lanes)


def _horner(coefficients: tuple[float, ...], x: Any, lanes: int) -> Any:
    """Polynomial with the highest power's coefficient first."""
    value = splat(coefficients[0], lanes)
    for coefficient in coefficients[1:]:
        value = hold(value * x + splat(coefficient, lanes))
    return value
