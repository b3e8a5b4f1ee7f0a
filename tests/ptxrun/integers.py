"""Integer arithmetic, comparisons and selection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .decode import SINK, TYPES, WORD, Action, Decoder, Type, instruction
from .faults import Fault
from .floats import widen_bfloat16
from .syntax import Register

Array = NDArray[Any]


def word_type(bits: int, signed: bool) -> Type:
    return TYPES[f"{'s' if signed else 'u'}{bits}"]


def high_product(a: Array, b: Array) -> Array:
    """The upper half of the product of two words of up to 64 bits."""
    bits = a.dtype.itemsize * 8
    signed = a.dtype.kind == "i"
    if bits < 64:
        wide = np.dtype(f"{a.dtype.kind}{a.dtype.itemsize * 2}").type
        return ((a.astype(wide) * b.astype(wide)) >> wide(bits)).astype(a.dtype)
    x, y = a.view(np.uint64), b.view(np.uint64)
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    middle = (x & low) * (y & low) >> half
    cross = (x >> half) * (y & low) + middle
    other = (x & low) * (y >> half) + (cross & low)
    high = (x >> half) * (y >> half) + (cross >> half) + (other >> half)
    if signed:
        high = high - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
    return high.view(a.dtype)


def product(part: str | None, bits: int, signed: bool) -> Callable[[Array, Array], Array]:
    if part == "wide":
        wide = word_type(bits * 2, signed).view
        return lambda a, b: a.astype(wide) * b.astype(wide)
    return high_product if part == "hi" else np.multiply


def add_or_sub(d: Decoder, type_: Type) -> Action:
    """Integer add and sub. With .cc they write the carry flag; addc and subc read it."""
    minus, reads = d.opcode.startswith("sub"), d.opcode.endswith("c")
    writes = d.take("cc") is not None
    d.finish(3)
    target = d.target(0, type_.bits)
    a, b = d.source(1, type_), d.source(2, type_)
    if not (reads or writes):
        function = np.subtract if minus else np.add
        return d.elementwise(function, target, type_.bits, (a, b), (type_, type_))
    # a - b is computed as a + ~b + 1. The flag of a subtraction is the borrow: set if there is no
    # carry.
    carry = d.program.carry
    return with_carry(
        d,
        type_,
        target,
        (a, b),
        lambda x, y: (x, ~y) if minus else (x, y),
        carry,
        reads,
        writes,
        minus,
    )


def with_carry(
    d: Decoder,
    type_: Type,
    target: int,
    sources: tuple[int, ...],
    terms: Callable[..., tuple[Array, Array]],
    carry: int,
    reads: bool,
    writes: bool,
    minus: bool,
) -> Action:
    """The action target = sum of two terms and the carry flag."""
    word = WORD[type_.bits]
    one = word(1)

    def action(cta: Any) -> None:
        registers = cta.registers
        x, y = terms(*(registers[n].view(word) for n in sources))
        flag = registers[carry] ^ minus if reads else np.full(cta.threads, minus)
        total = x + y
        overflow = total < x
        result = total + flag * one
        overflow = overflow | (flag & (result == 0))
        used = (*sources, carry) if reads else sources
        cta.write(target, result, used, 1)
        if writes:
            cta.write(carry, overflow ^ minus, used, 1)

    return action


def multiply(d: Decoder, type_: Type) -> Action:
    """Integer mul and mad."""
    part = d.take("wide", "hi", "lo")
    if part is None:
        raise d.unknown()
    adds, reads = d.opcode != "mul", d.opcode == "madc"
    writes = d.take("cc") is not None
    d.finish(4 if adds else 3)
    out = word_type(type_.bits * 2, type_.is_signed) if part == "wide" else type_
    target = d.target(0, out.bits)
    sources = [d.source(1, type_), d.source(2, type_)]
    times = product(part, type_.bits, type_.is_signed)
    if not adds:
        return d.elementwise(times, target, out.bits, sources, (type_, type_))
    sources.append(d.source(3, out))
    if reads or writes:
        view, word = type_.view, WORD[type_.bits]

        def terms(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
            return times(a.view(view), b.view(view)).view(word), c

        return with_carry(
            d, type_, target, tuple(sources), terms, d.program.carry, reads, writes, False
        )
    types = (type_, type_, out)
    return d.elementwise(lambda a, b, c: times(a, b) + c, target, out.bits, sources, types)


def divide(d: Decoder, type_: Type) -> Action:
    """Integer div and rem, truncating."""
    d.finish(3)
    target, a, b = d.target(0, type_.bits), d.source(1, type_), d.source(2, type_)
    remainder = d.opcode == "rem"
    word, view = WORD[type_.bits], type_.view

    def action(cta: Any) -> None:
        x, y = cta.registers[a].view(view), cta.registers[b].view(view)
        zero = y == 0
        if zero.any():
            if (zero & cta.mask).any() and b not in cta.undefined:
                raise Fault("division by zero")
            y = np.where(zero, view(1), y)
        rest = np.fmod(x, y)
        # x - rest is a multiple of y, so it does not matter that numpy's // rounds down.
        value = rest if remainder else (x - rest) // y
        cta.write(target, value.view(word), (a, b), 1)

    return action


def smaller_or_larger(d: Decoder, type_: Type) -> Action:
    """Integer min and max."""
    d.finish(3)
    function = np.minimum if d.opcode == "min" else np.maximum
    sources = (d.source(1, type_), d.source(2, type_))
    return d.elementwise(function, d.target(0, type_.bits), type_.bits, sources, (type_, type_))


def negate_or_abs(d: Decoder, type_: Type) -> Action:
    """Integer neg and abs. The most negative number stays as it is."""
    d.finish(2)
    function = np.negative if d.opcode == "neg" else np.abs
    source = d.source(1, type_)
    return d.elementwise(function, d.target(0, type_.bits), type_.bits, (source,), (type_,))


COMPARE: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}


def ordered(name: str) -> Callable[[Array, Array], Array]:
    """A comparison that is false if an operand is NaN, or true if its name ends in u."""
    if name in ("num", "nan"):
        want = name == "nan"
        return lambda a, b: (np.isnan(a) | np.isnan(b)) == want
    compare = COMPARE[name[:2]]
    if len(name) == 3:
        return lambda a, b: compare(a, b) | np.isnan(a) | np.isnan(b)
    if name == "ne":
        return lambda a, b: (a != b) & ~np.isnan(a) & ~np.isnan(b)
    return compare


def comparison(d: Decoder, type_: Type) -> Callable[[Array, Array], Array]:
    if type_.is_float:
        name = d.take(
            *(c + u for c in ("eq", "ne", "lt", "le", "gt", "ge") for u in ("", "u")), "num", "nan"
        )
        if name is None or type_.parts > 1:
            raise d.unknown()
        function = ordered(name)
        if d.take("ftz"):
            if type_.name != "f32":
                raise d.unknown()
            from .floats import flush

            return lambda a, b: function(flush(a), flush(b))
        if type_.name == "bf16":
            return lambda a, b: function(widen_bfloat16(a), widen_bfloat16(b))
        return function
    allowed = ("eq", "ne") if type_.name[0] in "b" else tuple(COMPARE)
    name = d.take(*allowed)
    if name is None or (type_.is_signed and name in ("lo", "ls", "hi", "hs")):
        raise d.unknown()
    return COMPARE[name]


@instruction("setp")
def set_predicate(d: Decoder) -> Action:
    type_ = d.type()
    compare = comparison(d, type_)
    combine = d.take("and", "or", "xor")
    d.finish(4 if combine else 3)
    targets = d.members(0)
    first = d.target(targets[0], 1)
    second = d.target(targets[1], 1) if len(targets) > 1 else SINK
    sources = [d.source(1, type_), d.source(2, type_)]
    third, invert = None, False
    if combine:
        given = d.operands[3]
        if isinstance(given, Register):
            third, invert = given.number, given.negated
        else:
            third = d.source(3, TYPES["pred"])
        sources.append(third)
    join = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}.get(combine or "")
    a, b, view = sources[0], sources[1], type_.view
    used = tuple(sources)

    def action(cta: Any) -> None:
        registers = cta.registers
        holds = compare(registers[a].view(view), registers[b].view(view))
        fails = ~holds
        if join is not None:
            other = registers[third] ^ invert
            holds, fails = join(holds, other), join(fails, other)
        cta.write(first, holds, used, 1)
        if second != SINK:
            cta.write(second, fails, used, 1)

    return action


@instruction("selp")
def select(d: Decoder) -> Action:
    type_ = d.type()
    d.finish(4)
    sources = (d.source(1, type_), d.source(2, type_), d.source(3, TYPES["pred"]))

    def spread(values: list[Array], unknown: list[Array]) -> Array:
        chosen = np.where(values[2], unknown[0], unknown[1])
        return np.where(unknown[2], ~chosen.dtype.type(0), chosen)

    raw = TYPES[f"b{type_.bits}"]
    return d.bitwise(
        lambda a, b, c: np.where(c, a, b),
        spread,
        d.target(0, type_.bits),
        type_.bits,
        sources,
        (raw, raw, TYPES["pred"]),
    )
