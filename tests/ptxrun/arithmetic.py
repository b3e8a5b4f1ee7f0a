"""Floating-point instructions, and the opcodes that floats share with integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import floats, integers
from .decode import TYPES, Action, Decoder, Type, instruction
from .syntax import Register

Array = NDArray[Any]
Function = Callable[..., Array]

BASIC: dict[str, Function] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "sqrt": np.sqrt,
    "rcp": np.reciprocal,
}
FMA: dict[str, Function] = {
    "f16": floats.fma_float16,
    "bf16": floats.fma_bfloat16,
    "f32": floats.fma_float32,
    "f64": floats.fma_float64,
}
# We compute the exact function and round once. Hardware may differ in the last bits.
APPROXIMATE: dict[str, Function] = {
    "rcp": np.reciprocal,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: 1.0 / np.sqrt(a),
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "div": np.divide,
}


def scalar_name(type_: Type) -> str:
    return type_.name.removesuffix("x2")


def on_storage(name: str, function: Function) -> Function:
    """Turns a function on numbers into one on the words that store them, with PTX's NaN."""
    if name == "bf16":
        return floats.in_bfloat16(function)
    return lambda *operands: floats.canonical(function(*operands))


def with_modes(d: Decoder, name: str, function: Function) -> Function:
    """Reads the modifiers .ftz and .sat."""
    flushes, saturates = d.take("ftz"), d.take("sat")
    if (flushes and name != "f32") or (saturates and name not in ("f32", "f16")):
        raise d.unknown()
    if flushes:
        plain = function
        function = lambda *operands: floats.flush(plain(*map(floats.flush, operands)))  # noqa: E731
    if saturates:
        unclamped = function
        function = lambda *operands: floats.saturate(unclamped(*operands))  # noqa: E731
    return function


def float_elementwise(d: Decoder, type_: Type, function: Function, operands: int) -> Action:
    """Finishes decoding an instruction that computes its first operand from the others."""
    d.finish(operands)
    sources = [d.source(place, type_) for place in range(1, operands)]
    target = d.target(0, type_.bits)
    types = [type_] * len(sources)
    return d.elementwise(function, target, type_.bits, sources, types, type_.parts)


def mixed_precision(d: Decoder, type_: Type) -> Action:
    """add, sub and fma in float32 with 16-bit operands, which are widened exactly (sm_100)."""
    narrow = TYPES[d.take("bf16", "f16") or ""]
    d.take("rn")
    wide = TYPES[d.take("f32") or ""]
    count = 4 if d.opcode == "fma" else 3
    d.finish(count)
    types = [narrow] * (count - 2) + [wide]
    sources = [d.source(place + 1, kind) for place, kind in enumerate(types)]
    widen = floats.widen_bfloat16 if narrow.name == "bf16" else lambda a: a.astype(np.float32)
    plain = FMA["f32"] if d.opcode == "fma" else BASIC[d.opcode]
    if d.opcode == "fma":
        d.step.tags.append("fma")

    def function(*operands: Array) -> Array:
        return floats.canonical(plain(*(widen(a) for a in operands[:-1]), operands[-1]))

    return d.elementwise(function, d.target(0, 32), 32, sources, types)


def is_mixed(d: Decoder) -> bool:
    words = d.instruction.modifiers
    return "f32" in words and words[-1] in ("bf16", "f16")


@instruction("add", "sub", "addc", "subc")
def add_and_sub(d: Decoder) -> Action:
    if is_mixed(d):
        return mixed_precision(d, TYPES["f32"])
    type_ = d.type()
    if not type_.is_float:
        return integers.add_or_sub(d, type_)
    return basic(d, type_, 3)


def basic(d: Decoder, type_: Type, operands: int) -> Action:
    """A correctly rounded operation. Without .rn the assembler may fuse it, so those are counted
    separately, as "fusable"."""
    if d.opcode not in BASIC:
        raise d.unknown()
    rounding = d.take("rn")
    if rounding is None and d.opcode in ("add", "sub", "mul"):
        d.step.tags.append("fusable")
    name = scalar_name(type_)
    function = with_modes(d, name, on_storage(name, BASIC[d.opcode]))
    return float_elementwise(d, type_, function, operands)


@instruction("mul", "mad", "madc")
def multiply(d: Decoder) -> Action:
    type_ = d.type()
    if not type_.is_float:
        return integers.multiply(d, type_)
    return fused(d, type_) if d.opcode == "mad" else basic(d, type_, 3)


@instruction("fma")
def fused_multiply_add(d: Decoder) -> Action:
    if is_mixed(d):
        return mixed_precision(d, TYPES["f32"])
    return fused(d, d.type())


def fused(d: Decoder, type_: Type) -> Action:
    if d.take("rn") is None or not type_.is_float:
        raise d.unknown()
    d.step.tags.append("fma")
    name = scalar_name(type_)
    function = FMA[name]
    if name != "bf16":
        exact = function
        function = lambda a, b, c: floats.canonical(exact(a, b, c))  # noqa: E731
    return float_elementwise(d, type_, with_modes(d, name, function), 4)


@instruction("div", "rcp", "sqrt", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh", "rem")
def root_or_quotient(d: Decoder) -> Action:
    type_ = d.type()
    if not type_.is_float:
        if d.opcode not in ("div", "rem"):
            raise d.unknown()
        return integers.divide(d, type_)
    operands = 3 if d.opcode == "div" else 2
    if d.take("approx", "full"):
        return approximate(d, type_, operands)
    if "rn" not in d.instruction.modifiers or d.opcode not in BASIC or type_.bits < 32:
        raise d.unknown()
    return basic(d, type_, operands)


def approximate(d: Decoder, type_: Type, operands: int) -> Action:
    """Computes in float64 and rounds once. Counted, so that a test can refuse it."""
    if type_.name not in ("f32", "f64") or d.opcode not in APPROXIMATE:
        raise d.unknown()
    d.step.tags.append("approximate")
    exact, view = APPROXIMATE[d.opcode], type_.view

    def function(*operands: Array) -> Array:
        return floats.canonical(exact(*(a.astype(np.float64) for a in operands)).astype(view))

    return float_elementwise(d, type_, with_modes(d, type_.name, function), operands)


def as_numbers(name: str, bits: Array) -> Array:
    return floats.widen_bfloat16(bits) if name == "bf16" else bits


def extreme(name: str, largest: bool, keeps_nan: bool) -> Function:
    """PTX min and max: -0 is less than +0; a number wins over a NaN unless .NaN is given."""
    not_a_number = (
        np.uint16(0x7FFF) if name == "bf16" else floats.CANONICAL_NAN[np.dtype(TYPES[name].view)]
    )

    def function(a: Array, b: Array) -> Array:
        x, y = as_numbers(name, a), as_numbers(name, b)
        first = (x > y) if largest else (x < y)
        value = np.where(first | np.isnan(y), a, b)
        bits, other = floats.bits_of(a), floats.bits_of(b)
        tie = (bits & other) if largest else (bits | other)  # only -0 and +0 are equal but differ
        value = np.where(x == y, tie.view(a.dtype), value)
        nan = np.isnan(x) | np.isnan(y) if keeps_nan else np.isnan(x) & np.isnan(y)
        return np.where(nan, not_a_number, value)

    return function


@instruction("min", "max")
def min_and_max(d: Decoder) -> Action:
    type_ = d.type()
    if not type_.is_float:
        return integers.smaller_or_larger(d, type_)
    if len(d.operands) > 4:
        raise d.unknown()
    name = scalar_name(type_)
    of_two = extreme(name, d.opcode == "max", d.take("NaN") is not None)
    function = of_two
    if len(d.operands) == 4 and name == "f32":  # sm_100
        takes_abs = d.take("abs") is not None

        def function(*operands: Array) -> Array:
            a, b, c = map(np.abs, operands) if takes_abs else operands
            return of_two(of_two(a, b), c)

    return float_elementwise(d, type_, with_modes(d, name, function), len(d.operands))


def sign_change(name: str, clears: bool) -> Function:
    """neg and abs, which change the sign bit only, even of a NaN."""

    def function(a: Array) -> Array:
        bits = floats.bits_of(a)
        sign = bits.dtype.type(1 << (bits.dtype.itemsize * 8 - 1))
        return (bits & ~sign if clears else bits ^ sign).view(a.dtype)

    return function


@instruction("neg", "abs")
def change_sign(d: Decoder) -> Action:
    type_ = d.type()
    if not type_.is_float:
        return integers.negate_or_abs(d, type_)
    name = scalar_name(type_)
    function = with_modes(d, name, sign_change(name, d.opcode == "abs"))
    return float_elementwise(d, type_, function, 2)


@instruction("copysign")
def copy_sign(d: Decoder) -> Action:
    """The second source with the sign of the first."""
    type_ = d.type()
    if type_.name not in ("f32", "f64"):
        raise d.unknown()
    return float_elementwise(d, type_, lambda a, b: np.copysign(b, a), 3)


@instruction("testp")
def test_property(d: Decoder) -> Action:
    type_ = d.type()
    test = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda a: ~np.isnan(a),
        "notanumber": np.isnan,
        "normal": lambda a: np.isfinite(a) & (np.abs(a) >= np.finfo(a.dtype).tiny),
        "subnormal": lambda a: (a != 0) & (np.abs(a) < np.finfo(a.dtype).tiny),
    }[d.take("finite", "infinite", "number", "notanumber", "normal", "subnormal") or "number"]
    d.finish(2)
    if type_.name not in ("f32", "f64") or not isinstance(d.operands[0], Register):
        raise d.unknown()
    return d.elementwise(test, d.target(0, 1), 1, (d.source(1, type_),), (type_,))
