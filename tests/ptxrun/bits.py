"""Logic, shifts, bit fields, permutations and moves. Each undefined bit is tracked on its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .decode import TYPES, WORD, Action, Decoder, Type, instruction
from .syntax import Group, Immediate

Array = NDArray[Any]


def all_ones(like: Array) -> Any:
    word = np.bool_ if like.dtype == bool else np.dtype(f"u{like.dtype.itemsize}").type
    return ~word(0)


def spread_and(values: list[Array], unknown: list[Array]) -> Array:
    """A known 0 makes the result known."""
    (a, b), (ua, ub) = values, unknown
    return (ua | ub) & (a | ua) & (b | ub)


def spread_or(values: list[Array], unknown: list[Array]) -> Array:
    """A known 1 makes the result known."""
    (a, b), (ua, ub) = values, unknown
    return (ua | ub) & (~a | ua) & (~b | ub)


def moved_by(function: Callable[..., Array], moved: int = 1) -> Callable[..., Array]:
    """How undefined bits spread when `function` moves bits: they move like the others, and an
    undefined control operand makes every bit undefined."""

    def spread(values: list[Array], unknown: list[Array]) -> Array:
        bits = function(*unknown[:moved], *values[moved:])
        for control in unknown[moved:]:
            bits = np.where(control != 0, all_ones(bits).astype(bits.dtype), bits)
        return bits

    return spread


@instruction("and", "or", "xor", "not")
def logic(d: Decoder) -> Action:
    type_ = d.type()
    if type_.name[0] not in "bp":
        raise d.unknown()
    if d.opcode == "not":
        d.finish(2)
        source = d.source(1, type_)
        target = d.target(0, type_.bits)
        return d.bitwise(np.invert, lambda _, u: u[0], target, type_.bits, (source,), (type_,))
    d.finish(3)
    function, spread = {
        "and": (np.bitwise_and, spread_and),
        "or": (np.bitwise_or, spread_or),
        "xor": (np.bitwise_xor, lambda _, u: u[0] | u[1]),
    }[d.opcode]
    sources = (d.source(1, type_), d.source(2, type_))
    target = d.target(0, type_.bits)
    return d.bitwise(function, spread, target, type_.bits, sources, (type_, type_))


@instruction("lop3")
def three_way_logic(d: Decoder) -> Action:
    type_ = d.type()
    d.finish(5)
    table = d.operands[4]
    if type_.name != "b32" or not isinstance(table, Immediate):
        raise d.unknown()

    def function(a: Array, b: Array, c: Array) -> Array:
        result = np.zeros_like(a)
        for row in range(8):
            if table.bits >> row & 1:
                result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
        return result

    sources = [d.source(i, type_) for i in (1, 2, 3)]
    spread = lambda _, u: u[0] | u[1] | u[2]  # noqa: E731
    return d.bitwise(function, spread, d.target(0, 32), 32, sources, (type_,) * 3)


def shift_left(a: Array, count: Array) -> Array:
    width = a.dtype.itemsize * 8
    amount = np.minimum(count, width - 1).astype(a.dtype)
    return np.where(count >= width, a.dtype.type(0), a << amount)


def shift_right(a: Array, count: Array) -> Array:
    """Shifts the sign bit in if the words are signed, else zeros."""
    width = a.dtype.itemsize * 8
    shifted = a >> np.minimum(count, width - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(count >= width, a.dtype.type(0), shifted)


@instruction("shl", "shr")
def shift(d: Decoder) -> Action:
    type_ = d.type()
    d.finish(3)
    function = shift_left if d.opcode == "shl" else shift_right
    sources = (d.source(1, type_), d.source(2, TYPES["u32"]))
    target = d.target(0, type_.bits)
    types = (type_, TYPES["u32"])
    return d.bitwise(function, moved_by(function), target, type_.bits, sources, types)


@instruction("shf")
def funnel_shift(d: Decoder) -> Action:
    direction, mode, type_ = d.take("l", "r"), d.take("wrap", "clamp"), d.type()
    d.finish(4)
    if direction is None or mode is None or type_.name != "b32":
        raise d.unknown()

    def function(low: Array, high: Array, count: Array) -> Array:
        both = high.astype(np.uint64) << np.uint64(32) | low
        amount = count & np.uint32(31) if mode == "wrap" else np.minimum(count, 32)
        if direction == "r":
            return (both >> amount.astype(np.uint64)).astype(np.uint32)
        return (both >> (32 - amount.astype(np.int64)).astype(np.uint64)).astype(np.uint32)

    sources = [d.source(i, type_) for i in (1, 2, 3)]
    return d.bitwise(function, moved_by(function, 2), d.target(0, 32), 32, sources, (type_,) * 3)


def field_mask(length: Array, word: Any) -> Array:
    """A word whose low `length` bits are 1; all of its bits if `length` is its width or more."""
    return ~shift_left(np.full(length.shape, ~word(0)), length)


@instruction("bfe")
def extract_field(d: Decoder) -> Action:
    type_ = d.type()
    d.finish(4)
    if type_.bits not in (32, 64) or type_.name[0] == "b":
        raise d.unknown()
    word, top = WORD[type_.bits], type_.bits - 1

    def function(a: Array, position: Array, length: Array) -> Array:
        position, length = position & np.uint32(255), length & np.uint32(255)
        mask = field_mask(length, word)
        field = shift_right(a, position).view(word) & mask
        if type_.is_signed:
            last = np.minimum(position.astype(np.int64) + length - 1, top).clip(0)
            sign = (a.view(word) >> last.astype(word)) & word(1)
            field = np.where((sign != 0) & (length != 0), field | ~mask, field)
        return field.view(type_.view)

    sources = (d.source(1, type_), d.source(2, TYPES["u32"]), d.source(3, TYPES["u32"]))
    types = (type_, TYPES["u32"], TYPES["u32"])
    target = d.target(0, type_.bits)
    return d.bitwise(function, moved_by(function), target, type_.bits, sources, types)


@instruction("bfi")
def insert_field(d: Decoder) -> Action:
    type_ = d.type()
    d.finish(5)
    if type_.name not in ("b32", "b64"):
        raise d.unknown()
    word = WORD[type_.bits]

    def function(a: Array, b: Array, position: Array, length: Array) -> Array:
        position, length = position & np.uint32(255), length & np.uint32(255)
        mask = shift_left(field_mask(length, word), position)
        return (shift_left(a, position) & mask) | (b & ~mask)

    u32 = TYPES["u32"]
    sources = (d.source(1, type_), d.source(2, type_), d.source(3, u32), d.source(4, u32))
    target = d.target(0, type_.bits)
    spread = moved_by(function, 2)
    return d.bitwise(function, spread, target, type_.bits, sources, (type_, type_, u32, u32))


@instruction("prmt")
def permute_bytes(d: Decoder) -> Action:
    type_ = d.type()
    d.finish(4)
    if type_.name != "b32":
        raise d.unknown()

    def function(a: Array, b: Array, selector: Array) -> Array:
        both = b.astype(np.uint64) << np.uint64(32) | a
        result = np.zeros_like(both)
        for place in range(4):
            pick = (selector >> np.uint32(4 * place)) & np.uint32(15)
            byte = both >> ((pick & np.uint32(7)) * np.uint32(8)).astype(np.uint64)
            byte = byte & np.uint64(255)
            sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
            byte = np.where(pick & np.uint32(8), sign, byte)
            result |= byte << np.uint64(8 * place)
        return result.astype(np.uint32)

    sources = [d.source(i, type_) for i in (1, 2, 3)]
    return d.bitwise(function, moved_by(function, 2), d.target(0, 32), 32, sources, (type_,) * 3)


@instruction("mov")
def move(d: Decoder) -> Action:
    type_ = d.type()
    d.finish(2)
    if isinstance(d.operands[0], Group):
        return unpack(d, type_)
    if isinstance(d.operands[1], Group):
        return pack(d, type_)
    target, source = d.target(0, type_.bits), d.source(1, type_)
    if d.instruction.marks_undefined:
        ones = np.full(d.program.threads, ~WORD[type_.bits](0))
        return lambda cta: cta.write_bits(target, cta.registers[source], ones)

    def action(cta: Any) -> None:
        cta.write_bits(target, cta.registers[source], cta.undefined.get(source))

    return action


def unpack(d: Decoder, type_: Type) -> Action:
    members = d.members(0)
    bits = type_.bits // len(members)
    word = WORD[bits]
    targets = [d.target(member, bits) for member in members]
    source = d.source(1, type_)

    def action(cta: Any) -> None:
        values = cta.registers[source].view(word).reshape(-1, len(targets))
        unknown = cta.undefined.get(source)
        parts = None if unknown is None else unknown.view(word).reshape(values.shape)
        for place, target in enumerate(targets):
            value = np.ascontiguousarray(values[:, place])
            part = None if parts is None else np.ascontiguousarray(parts[:, place])
            cta.write_bits(target, value, part)

    return action


def pack(d: Decoder, type_: Type) -> Action:
    members = d.members(1)
    bits = type_.bits // len(members)
    word, whole = WORD[bits], WORD[type_.bits]
    sources = [d.source(member, TYPES[f"b{bits}"]) for member in members]
    target = d.target(0, type_.bits)

    def action(cta: Any) -> None:
        value = np.stack([cta.registers[source] for source in sources], axis=1).view(whole)
        bits_ = None
        if not cta.undefined.keys().isdisjoint(sources):
            zero = np.zeros(cta.threads, word)
            parts = [cta.undefined.get(source, zero) for source in sources]
            bits_ = np.stack(parts, axis=1).view(whole).reshape(-1)
        cta.write_bits(target, value.reshape(-1), bits_)

    return action
