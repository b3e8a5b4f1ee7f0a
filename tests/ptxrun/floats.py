"""Floating point as in PTX: one rounding, canonical NaN, flushed denormals, bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# The NaN that arithmetic returns, whatever NaN it gets.
CANONICAL_NAN = {
    np.dtype(np.float16): np.array(0x7FFF, np.uint16).view(np.float16)[()],
    np.dtype(np.float32): np.array(0x7FFFFFFF, np.uint32).view(np.float32)[()],
    np.dtype(np.float64): np.array(0x7FFFFFFFFFFFFFFF, np.uint64).view(np.float64)[()],
}
SMALLEST_NORMAL = np.float32(2.0**-126)
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def bits_of(value: Array) -> Array:
    """The same bytes as unsigned integers."""
    return value.view(UNSIGNED[value.dtype.itemsize])


def canonical(value: Array) -> Array:
    """Replaces every NaN by the one that PTX arithmetic returns."""
    is_nan = value != value
    if is_nan.any():
        return np.where(is_nan, CANONICAL_NAN[value.dtype], value)
    return value


def flush(value: Array) -> Array:
    """Replaces denormal float32 numbers by zeros of the same sign (.ftz)."""
    small = np.abs(value) < SMALLEST_NORMAL
    return np.where(small, np.copysign(np.float32(0), value), value) if small.any() else value


def saturate(value: Array) -> Array:
    """Clamps to [0, 1]; NaN becomes 0 (.sat)."""
    one = value.dtype.type(1)
    zero = value.dtype.type(0)
    return np.where(value > one, one, np.where(value > zero, value, zero))


def round_to_odd(value: Array, error: Array) -> Array:
    """`value + error`, rounded to odd: if it is no number of the format, the neighbour whose last
    bit is 1. `value` is the sum rounded to nearest, `error` the rest.

    Rounding the result again, to a format with at least two bits less, is the same as rounding the
    exact sum once (Boldo and Melquiond, Emulation of FMA and correctly rounded sums).
    """
    bits = bits_of(value)
    even = (bits & bits.dtype.type(1)) == 0
    away = (error > 0) == (value > 0)
    moved = np.where(away, bits + bits.dtype.type(1), bits - bits.dtype.type(1))
    from_zero = bits_of(
        np.copysign(value.dtype.type(0), error.astype(value.dtype))
    ) | bits.dtype.type(1)
    moved = np.where(value == 0, from_zero, moved)
    inexact = even & (error != 0) & ~np.isnan(error)
    return np.where(inexact, moved, bits).view(value.dtype)


def odd_sum(a: Array, b: Array) -> Array:
    """a + b of float64 numbers, rounded to odd."""
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)  # Knuth's TwoSum
    return round_to_odd(total, np.where(np.isfinite(total), error, 0.0))


def odd_float32(value: Array) -> Array:
    """float64 -> float32, rounded to odd."""
    narrow = value.astype(np.float32)
    error = np.where(np.isfinite(value), value - narrow.astype(np.float64), 0.0)
    return round_to_odd(narrow, error)


def widen_bfloat16(bits: Array) -> Array:
    """bfloat16 bits -> float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def round_bfloat16(value: Array) -> Array:
    """float32 -> bfloat16 bits, to nearest even."""
    bits = value.view(np.uint32)
    last = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + np.uint32(0x7FFF) + last) >> np.uint32(16)).astype(np.uint16)
    is_nan = value != value
    return np.where(is_nan, np.uint16(0x7FFF), rounded) if is_nan.any() else rounded


def narrow_to_bfloat16(value: Array) -> Array:
    """float64 -> bfloat16 bits, rounded once."""
    return round_bfloat16(odd_float32(value))


def fma_float32(a: Array, b: Array, c: Array) -> Array:
    """a * b + c with one rounding: the product of two float32 is exact in float64."""
    wide = odd_sum(a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64))
    return wide.astype(np.float32)


def fma_float16(a: Array, b: Array, c: Array) -> Array:
    """a * b + c with one rounding."""
    wide = odd_sum(a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64))
    return wide.astype(np.float16)


def fma_bfloat16(a: Array, b: Array, c: Array) -> Array:
    """a * b + c on bfloat16 bits with one rounding."""
    x, y, z = (widen_bfloat16(bits).astype(np.float64) for bits in (a, b, c))
    return narrow_to_bfloat16(odd_sum(x * y, z))


def _fma_one(a: float, b: float, c: float) -> float:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if not exact:
        return a * b + c  # float arithmetic gives the zero its sign
    try:
        return float(exact)
    except OverflowError:
        return float("inf") if exact > 0 else float("-inf")


def fma_float64(a: Array, b: Array, c: Array) -> Array:
    """a * b + c with one rounding, in rational numbers if all three are finite."""
    finite = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    result = a * b + c
    for lane in np.flatnonzero(finite):
        result[lane] = _fma_one(float(a[lane]), float(b[lane]), float(c[lane]))
    return result


def in_bfloat16(operation: Callable[..., Array]) -> Callable[..., Array]:
    """Turns an operation on float64 numbers into one on bfloat16 bits, rounded once.

    float64 has more than twice the bits of bfloat16 plus two, so rounding first to float64 changes
    nothing (Figueroa, When is double rounding innocuous?).
    """

    def on_bits(*operands: Array) -> Array:
        wide = (widen_bfloat16(bits).astype(np.float64) for bits in operands)
        return narrow_to_bfloat16(operation(*wide))

    return on_bits
