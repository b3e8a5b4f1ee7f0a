"""cvt between integers and floats, with the rounding modes that our kernels use, and cvta between
address spaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import floats
from .bits import moved_by
from .decode import TYPES, WORD, Action, Decoder, Type, instruction
from .faults import Fault
from .syntax import LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW

Array = NDArray[Any]

TO_INTEGER: dict[str, Callable[[Array], Array]] = {
    "rni": np.rint,
    "rzi": np.trunc,
    "rmi": np.floor,
    "rpi": np.ceil,
}


def float_to_integer(value: Array, rounding: str, to: Type, source: Type) -> Array:
    """Rounds to an integer, clamped to its range. What a NaN becomes is in the PTX manual."""
    whole = TO_INTEGER[rounding](value.astype(np.float64))
    info = np.iinfo(to.view)
    # The largest 64-bit integers are no float64 numbers: float() rounds them up to 2**63 and 2**64.
    above, below = whole >= float(info.max), whole <= float(info.min)
    inside = np.where(above | below | np.isnan(whole), 0.0, whole).astype(to.view)
    result = np.where(above, info.max, np.where(below, info.min, inside)).astype(to.view)
    wide = source.name == "f64" or to.bits == 64
    nan = np.array(1 << (to.bits - 1), np.uint64).astype(WORD[to.bits]) if wide else 0
    return np.where(np.isnan(whole), np.asarray(nan).astype(to.view), result).astype(to.view)


def integer_to_integer(value: Array, to: Type, saturates: bool) -> Array:
    if saturates:
        info = np.iinfo(to.view)
        low, high = np.iinfo(value.dtype).min, np.iinfo(value.dtype).max
        value = np.clip(value, max(info.min, low), min(info.max, high))
    return value.astype(to.view)


def directed(value: Array, narrow: Array, rounding: str) -> Array:
    """Corrects a number that was rounded to nearest to the directed rounding mode."""
    wide = narrow.astype(np.float64)
    kind = narrow.dtype.type
    if rounding == "rm" or rounding == "rp":
        wrong = wide > value if rounding == "rm" else wide < value
        end = kind(-np.inf) if rounding == "rm" else kind(np.inf)
        return np.where(wrong, np.nextafter(narrow, end), narrow)
    if rounding == "rz":
        return np.where(np.abs(wide) > np.abs(value), np.nextafter(narrow, kind(0)), narrow)
    return narrow


def round_float(value: Array, to: Type, rounding: str) -> Array:
    """float64 numbers as words of a float type, rounded once."""
    if to.name == "bf16":
        if rounding == "rn":
            return floats.narrow_to_bfloat16(value)
        if rounding != "rz":
            raise Fault("instruction not modelled")
        odd = floats.odd_float32(value)
        cut = (odd.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        return np.where(np.isnan(value), np.uint16(0x7FFF), cut)
    return floats.canonical(directed(value, value.astype(to.view), rounding))


def to_float64(value: Array, source: Type) -> Array:
    wide = floats.widen_bfloat16(value) if source.name == "bf16" else value
    return wide.astype(np.float64)


def float_to_float(source: Type, to: Type, rounding: str | None) -> Callable[[Array], Array]:
    if rounding in TO_INTEGER:
        whole = TO_INTEGER[rounding]
        return lambda a: round_float(whole(to_float64(a, source)), to, "rn")
    if source.name == "f32" and to.name == "bf16" and rounding == "rn":
        return floats.round_bfloat16
    if source.name == "bf16" and to.name == "f32":
        return floats.widen_bfloat16
    return lambda a: round_float(to_float64(a, source), to, rounding or "rn")


def conversion(d: Decoder, to: Type, source: Type) -> Callable[[Array], Array]:
    """The function that a cvt computes. Reads its modifiers."""
    rounding = d.take("rn", "rz", "rm", "rp", *TO_INTEGER)
    saturates, flushes = d.take("sat") is not None, d.take("ftz") is not None
    narrows = to.bits < source.bits or (to.bits == source.bits and to.name != source.name)
    needs = (to.is_float and not source.is_float) or (to.is_float and source.is_float and narrows)
    if (source.is_float and not to.is_float and rounding not in TO_INTEGER) or (
        needs and rounding is None
    ):
        raise d.unknown()
    if flushes and "f32" not in (to.name, source.name):
        raise d.unknown()
    if not source.is_float and not to.is_float:
        if rounding or flushes:
            raise d.unknown()
        return lambda a: integer_to_integer(a, to, saturates)
    if not to.is_float:
        function = lambda a: float_to_integer(a, str(rounding), to, source)  # noqa: E731
        if source.name == "bf16":
            integral = function
            function = lambda a: integral(floats.widen_bfloat16(a))  # noqa: E731
    elif not source.is_float:
        if source.bits < 64:
            function = lambda a: round_float(a.astype(np.float64), to, str(rounding))  # noqa: E731
        elif rounding == "rn" and to.bits >= 32:
            function = lambda a: a.astype(to.view)  # noqa: E731
        else:
            raise d.unknown()
    else:
        function = float_to_float(source, to, rounding)
    return with_flush_and_saturation(d, function, to, source, flushes, saturates)


def with_flush_and_saturation(
    d: Decoder,
    function: Callable[[Array], Array],
    to: Type,
    source: Type,
    flushes: bool,
    saturates: bool,
) -> Callable[[Array], Array]:
    def modified(a: Array) -> Array:
        value = function(floats.flush(a) if flushes and source.name == "f32" else a)
        if flushes and to.name == "f32":
            value = floats.flush(value)
        return floats.saturate(value) if saturates and to.is_float else value

    if saturates and to.name == "bf16":
        raise d.unknown()
    return modified if flushes or (saturates and to.is_float) else function


@instruction("cvt")
def convert(d: Decoder) -> Action:
    source = d.type()
    to = d.type()
    if to.parts == 2:
        return convert_pair(d, to, source)
    function = conversion(d, to, source)
    d.finish(2)
    number, cut = d.narrow_source(1, source)
    target = d.target(0, to.bits, wider=True)
    width = d.width(target, to.bits)
    final = np.dtype(f"i{width // 8}").type if to.is_signed else WORD[width]

    def on_register(value: Array) -> Array:
        if cut:
            value = value.astype(WORD[source.bits])
        result = function(value.view(source.view))
        return result if width == to.bits else result.astype(final)

    given = TYPES[f"b{d.width(number, source.bits)}"] if cut else TYPES[f"b{source.bits}"]
    if source.is_float or to.is_float:
        return d.elementwise(on_register, target, width, (number,), (given,))
    return d.bitwise(on_register, moved_by(on_register), target, width, (number,), (given,))


def convert_pair(d: Decoder, to: Type, source: Type) -> Action:
    """Converts two float32 to one word. The first source becomes the upper half."""
    half = TYPES[to.name.removesuffix("x2")]
    if source.name != "f32":
        raise d.unknown()
    function = conversion(d, half, source)
    d.finish(3)
    upper, lower = d.source(1, source), d.source(2, source)
    target = d.target(0, 32)

    def action(cta: Any) -> None:
        registers, undefined = cta.registers, cta.undefined
        pair = [function(registers[n].view(np.float32)).view(np.uint16) for n in (lower, upper)]
        bits = None
        if not undefined.keys().isdisjoint((upper, lower)):
            halves = [cta.smear((n,), pair[0], 1) for n in (lower, upper)]
            bits = np.stack(halves, axis=1).view(np.uint32).reshape(-1)
        cta.write_bits(target, np.stack(pair, axis=1).view(np.uint32).reshape(-1), bits)

    return action


@instruction("cvta")
def convert_address(d: Decoder) -> Action:
    """Converts between the addresses of a space and generic addresses."""
    to_space = d.take("to") is not None
    space = d.take("global", "shared", "local", "param", "shared::cta")
    type_ = d.type()
    d.finish(2)
    if space is None or type_.bits != 64:
        raise d.unknown()
    window = {"global": 0, "local": LOCAL_WINDOW, "param": PARAM_WINDOW}.get(space, SHARED_WINDOW)
    shift = np.uint64(-window % (1 << 64) if to_space else window)
    target, source = d.target(0, 64), d.source(1, type_)
    return d.elementwise(lambda a: a + shift, target, 64, (source,), (TYPES["u64"],))
