"""Oracles for table_of_cases.py: what instructions must compute, in exact rational numbers."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

NAN = float("nan")
INF = float("inf")

# (bits of the significand, exponent of the smallest normal number, struct code, NaN of arithmetic)
FORMATS = {
    "f16": (11, -14, "e", 0x7FFF),
    "bf16": (8, -126, "", 0x7FFF),
    "f32": (24, -126, "f", 0x7FFFFFFF),
    "f64": (53, -1022, "d", 0x7FFFFFFFFFFFFFFF),
}
LARGEST = {"f16": 65504.0, "f32": 3.4028234663852886e38, "f64": 1.7976931348623157e308}
LARGEST["bf16"] = 3.3895313892515355e38


class Case(NamedTuple):
    """D = instruction(A, B, C). `types` are those of D, A, B and C; `want` computes D."""

    text: str
    types: str
    want: Callable[..., Any]


def nearest(exact: Fraction, kind: str, mode: str = "rn") -> float:
    """Rounds an exact number to a float format."""
    digits, lowest, _, _ = FORMATS[kind]
    if not exact:
        return 0.0
    magnitude = abs(exact)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    exponent -= Fraction(2) ** exponent > magnitude
    unit = Fraction(2) ** (max(exponent, lowest) - digits + 1)
    steps = exact / unit
    whole = {
        "rn": round,
        "rz": math.trunc,
        "rm": math.floor,
        "rp": math.ceil,
    }[mode](steps)
    result = whole * unit
    if abs(result) > Fraction(LARGEST[kind]):
        towards_zero = mode == "rz" or (mode == "rm" and exact > 0) or (mode == "rp" and exact < 0)
        size = LARGEST[kind] if towards_zero else INF
        return math.copysign(size, float(exact.numerator > 0) - 0.5)
    if not result:
        return -0.0 if exact < 0 else 0.0
    return float(result)


def rounded(
    kind: str, exact: Callable[..., Fraction], plain: Callable[..., float]
) -> Callable[..., float]:
    """An operation rounded once: with `exact` if the operands are finite and the result is not 0,
    else with `plain`, which follows IEEE's rules for zeros, infinities and NaN."""

    def operation(*operands: float) -> float:
        if all(math.isfinite(x) for x in operands):
            try:
                value = exact(*map(Fraction, operands))
            except ZeroDivisionError:
                return plain(*operands)
            if value:
                return nearest(value, kind)
        return plain(*operands)

    return operation


def quotient(a: float, b: float) -> float:
    if b:
        return a / b if math.isfinite(a) or math.isfinite(b) else NAN
    if a == 0 or math.isnan(a):
        return NAN
    return math.copysign(INF, a) * math.copysign(1.0, b)


def root(kind: str) -> Callable[[float], float]:
    """A square root, computed to far more digits than the format has, then rounded."""

    def operation(a: float) -> float:
        if not (math.isfinite(a) and a > 0):
            return a if a == 0 or a == INF else NAN
        scale = 4**700
        number = Fraction(a) * scale * scale
        whole = math.isqrt(number.numerator // number.denominator)
        sticky = Fraction(1, 2) if Fraction(whole) ** 2 != number else Fraction(0)
        return nearest((whole + sticky) / scale, kind)

    return operation


def flushed(x: float) -> float:
    return math.copysign(0.0, x) if abs(x) < 2.0**-126 else x


def to_bits(value: Any, kind: str) -> int:
    """The word that stores a number. A NaN becomes PTX's canonical NaN."""
    if kind in FORMATS:
        if math.isnan(value):
            return FORMATS[kind][3]
        if kind == "bf16":
            return int(struct.unpack("<I", struct.pack("<f", value))[0] >> 16)
        code = FORMATS[kind][2]
        size = struct.calcsize(code)
        return int.from_bytes(struct.pack("<" + code, value), "little") & ((1 << size * 8) - 1)
    return int(value) & ((1 << width(kind)) - 1)


def from_bits(bits: int, kind: str) -> Any:
    if kind == "bf16":
        return struct.unpack("<f", struct.pack("<I", bits << 16))[0]
    if kind in FORMATS:
        code = FORMATS[kind][2]
        return struct.unpack("<" + code, bits.to_bytes(struct.calcsize(code), "little"))[0]
    size = width(kind)
    return bits - (1 << size) if kind[0] == "s" and bits >> (size - 1) else bits


def width(kind: str) -> int:
    return 1 if kind == "pred" else int(kind.lstrip("bfsu"))


def samples(kind: str) -> list[int]:
    """Words to test with: extremes, signs, ties, denormals, infinities, NaN."""
    size = width(kind)
    if kind == "pred":
        return [0, 1]
    if kind not in FORMATS:
        top = 1 << (size - 1)
        values = [0, 1, 2, 3, 5, 7, 31, 32, 33, 40, 63, 64, 100, 255, 0x5432, 0x9ABC, top - 1, top]
        values += [top + 1, -1, -2, -100, 0x12345678, 0x89ABCDEF, 0xDEADBEEFCAFEF00D]
        return sorted({value & ((1 << size) - 1) for value in values})
    digits, lowest, _, nan = FORMATS[kind]
    tiny = 2.0 ** (lowest - digits + 1)
    ulp = 2.0 ** (1 - digits)
    values_ = [0.0, 1.0, 1 + ulp, 1 + 3 * ulp, 2 - ulp, 3.0, 1 / 3, 0.1, 2.5, 0.5, ulp / 2, ulp]
    values_ += [1e-3, 300.0, 254.99, 65504.0, 2.0**lowest, tiny, 3 * tiny, LARGEST[kind], INF]
    values_ += [2.0 ** (lowest / 2), 2.0 ** (lowest / 2 - 3) * 3]
    words = [to_bits(nearest(Fraction(x), kind) if x < INF else x, kind) for x in values_]
    return [*words, *(word | 1 << (size - 1) for word in words), nan]


def signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def field(a: int, position: int, length: int, bits: int, is_signed: bool) -> int:
    position, length = position & 255, length & 255
    word = a & ((1 << bits) - 1)
    part = (word >> position) & ((1 << length) - 1)
    if is_signed and length and word >> min(position + length - 1, bits - 1) & 1:
        part |= -1 << length if position + length <= bits else -1 << max(bits - position, 0)
    return part


def inserted(a: int, b: int, position: int, length: int, bits: int) -> int:
    mask = ((1 << (length & 255)) - 1) << (position & 255)
    return (b & ~mask) | (a << (position & 255) & mask)


def permuted(a: int, b: int, selector: int) -> int:
    data = ((b << 32) | a).to_bytes(8, "little")
    result = 0
    for place in range(4):
        pick = selector >> 4 * place & 15
        byte = data[pick & 7]
        if pick & 8:
            byte = 255 if byte & 128 else 0
        result |= byte << 8 * place
    return result


def clamped_integer(mode: Callable[[float], int], low: int, high: int, nan: int) -> Any:
    def operation(a: float) -> int:
        if math.isnan(a):
            return nan
        if math.isinf(a):
            return high if a > 0 else low
        return min(max(mode(a), low), high)

    return operation


def smaller(a: float, b: float) -> float:
    if math.isnan(a) or math.isnan(b):
        return b if math.isnan(a) else a
    return min(a, b, key=lambda x: (x, math.copysign(1.0, x)))


def larger(a: float, b: float) -> float:
    return -smaller(-a, -b)


def unordered(a: float, b: float) -> bool:
    return math.isnan(a) or math.isnan(b)


def truncated(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def converted(kind: str, mode: str = "rn") -> Callable[[Any], float]:
    def operation(a: Any) -> float:
        exact = isinstance(a, int) or math.isfinite(a)
        return nearest(Fraction(a), kind, mode) if exact and a else float(a)

    return operation


def float_cases(kind: str) -> list[Case]:
    """Cases of arithmetic that must round once."""
    add = rounded(kind, lambda a, b: a + b, lambda a, b: a + b)
    sub = rounded(kind, lambda a, b: a - b, lambda a, b: a - b)
    mul = rounded(kind, lambda a, b: a * b, lambda a, b: a * b)
    fma = rounded(kind, lambda a, b, c: a * b + c, lambda a, b, c: a * b + c)
    two, three = f"{kind} {kind} {kind}", f"{kind} {kind} {kind} {kind}"
    cases = [
        Case(f"add.rn.{kind} D, A, B", two, add),
        Case(f"sub.rn.{kind} D, A, B", two, sub),
        Case(f"mul.rn.{kind} D, A, B", two, mul),
        Case(f"fma.rn.{kind} D, A, B, C", three, fma),
        Case(f"min.{kind} D, A, B", two, smaller),
        Case(f"max.{kind} D, A, B", two, larger),
    ]
    if kind in ("f32", "f64"):
        div = rounded(kind, lambda a, b: a / b, quotient)
        cases += [
            Case(f"div.rn.{kind} D, A, B", two, div),
            Case(f"sqrt.rn.{kind} D, A", f"{kind} {kind}", root(kind)),
            Case(f"rcp.rn.{kind} D, A", f"{kind} {kind}", lambda a: div(1.0, a)),
        ]
    return cases


def packed(kind: str, operation: Callable[..., float]) -> Callable[..., int]:
    """Applies an operation to both halves of words."""
    bits = width(kind)

    def on_words(*operands: int) -> int:
        halves = (
            to_bits(
                operation(*(from_bits(x >> shift & (1 << bits) - 1, kind) for x in operands)), kind
            )
            for shift in (0, bits)
        )
        return next(halves) | next(halves) << bits

    return on_words


def packed_cases() -> list[Case]:
    cases = []
    for kind, word in (("f32", "b64"), ("f16", "b32"), ("bf16", "b32")):
        mul = rounded(kind, lambda a, b: a * b, lambda a, b: a * b)
        add = rounded(kind, lambda a, b: a + b, lambda a, b: a + b)
        fma = rounded(kind, lambda a, b, c: a * b + c, lambda a, b, c: a * b + c)
        two = f"{word} {word} {word}"
        cases += [
            Case(f"mul.rn.{kind}x2 D, A, B", two, packed(kind, mul)),
            Case(f"add.rn.{kind}x2 D, A, B", two, packed(kind, add)),
            Case(f"fma.rn.{kind}x2 D, A, B, C", f"{two} {word}", packed(kind, fma)),
        ]
    return [*cases, Case("max.bf16x2 D, A, B", "b32 b32 b32", packed("bf16", larger))]


def ftz_cases() -> list[Case]:
    mul = rounded("f32", lambda a, b: a * b, lambda a, b: a * b)
    fma = rounded("f32", lambda a, b, c: a * b + c, lambda a, b, c: a * b + c)
    return [
        Case(
            "mul.ftz.f32 D, A, B", "f32 f32 f32", lambda a, b: flushed(mul(flushed(a), flushed(b)))
        ),
        Case(
            "fma.rn.ftz.f32 D, A, B, C",
            "f32 f32 f32 f32",
            lambda *x: flushed(fma(*map(flushed, x))),
        ),
        Case(
            "mul.rn.sat.f32 D, A, B",
            "f32 f32 f32",
            lambda a, b: min(mul(a, b), 1.0) if mul(a, b) > 0 else 0.0,
        ),
    ]
