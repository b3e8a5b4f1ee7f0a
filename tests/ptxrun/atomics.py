"""Atomics and fences: atom, red, fence, membar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import floats
from .access import scratch_index, spread
from .arithmetic import on_storage, scalar_name
from .cta import Cta
from .cta_races import Kind
from .decode import TYPES, WORD, Action, Decoder, Type, instruction
from .places import (
    SPACES,
    Order,
    cache_hints,
    count_requests,
    global_pieces,
    locate,
    memory_order,
    place,
)

Array = NDArray[Any]
Lanes = NDArray[np.int64]
Update = Callable[..., Array]

INTEGER: dict[str, Update] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "inc": lambda old, b: np.where(old >= b, old.dtype.type(0), old + old.dtype.type(1)),
    "dec": lambda old, b: np.where((old == 0) | (old > b), b, old - old.dtype.type(1)),
}
BITS: dict[str, Update] = {
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, b: b,
    "cas": lambda old, b, c: np.where(old == b, c, old),
}


def update_of(d: Decoder, name: str, type_: Type) -> Update:
    """The function new = update(old, operands) of an atomic, on arrays of its type."""
    if name in BITS:
        if type_.name[0] != "b" or type_.is_float or type_.bits < 32:
            raise d.unknown()
        return BITS[name]
    if type_.is_float:
        noftz = d.take("noftz") is not None
        if name != "add" or noftz != (scalar_name(type_) in ("f16", "bf16")):
            raise d.unknown()
        return on_storage(scalar_name(type_), np.add)
    if type_.bits < 32 or type_.name[0] == "b" or (name in ("inc", "dec") and type_.is_signed):
        raise d.unknown()
    return INTEGER[name]


def flushing(update: Update) -> Update:
    """atom.add.f32 on global memory flushes denormal inputs and results to zero (PTX manual)."""
    return lambda old, b: floats.flush(update(floats.flush(old), floats.flush(b)))


def in_turns(memory: Array, index: Lanes, update: Update, operands: list[Array]) -> Array:
    """Each lane updates its word. Lanes with the same word take turns, in lane order."""
    old = np.empty(len(index), memory.dtype)
    order = np.argsort(index, kind="stable")
    ordered = index[order]
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    turn = np.empty(len(index), np.int64)
    sizes = np.diff(np.append(begins, len(index)))
    turn[order] = np.arange(len(index)) - np.repeat(begins, sizes)
    for number in range(int(sizes.max())):
        now = np.flatnonzero(turn == number) if sizes.max() > 1 else slice(None)
        before = memory[index[now]]
        old[now] = before
        memory[index[now]] = update(before, *(operand[now] for operand in operands))
    return old


@instruction("atom", "red")
def atomic(d: Decoder) -> Action:
    order, space, returns = memory_order(d, "relaxed"), d.take(*SPACES), d.opcode == "atom"
    extra = cache_hints(d)
    name = d.take(*INTEGER, *BITS)
    type_ = d.type()
    if name is None or (space or "global").split("::")[0] not in ("global", "shared"):
        raise d.unknown()
    update = update_of(d, name, type_)
    first = 1 if returns else 0
    values = 2 if name == "cas" else 1
    d.finish(first + 1 + values + extra)
    target = d.target(0, type_.bits) if returns else -1
    where = place(d, first, space, type_.bits // 8)
    sources = [d.source(first + 1 + i, type_) for i in range(values)]
    d.step.yields = where.space in ("", "global")
    word, view, bits = WORD[type_.bits], type_.view, type_.bits

    def action(cta: Cta) -> None:
        lanes = cta.lanes
        for number in sources:
            cta.demand(number, "a value of an atomic")
        space, addresses = locate(cta, where, lanes)
        operands = [cta.registers[n][lanes].view(view) for n in sources]
        if space == "shared":
            index, _ = scratch_index(cta, space, addresses, lanes, where)
            old, undefined = cta.shared.load(index, bits // 8)
            cta.shared_races.update(addresses, where.width, lanes)
            memory = cta.shared.data.view(word)
            old = on_words(memory, index[:, 0], update, operands, view, type_.parts)
            unknown = spread(cta, lanes, undefined[:, 0], TYPES[f"b{bits}"], bits)
            cta.write_bits(target, spread(cta, lanes, old, TYPES[f"b{bits}"], bits), unknown)
            return
        count_requests(cta, f"{d.opcode}.global", addresses, lanes, where.width)
        flush = type_.name == "f32" and name == "add"
        old = update_global(
            cta,
            addresses,
            lanes,
            order,
            where.width,
            flushing(update) if flush else update,
            operands,
            type_,
        )
        cta.write_bits(target, spread(cta, lanes, old, TYPES[f"b{bits}"], bits), None)

    return action


def on_words(
    memory: Array, index: Lanes, update: Update, operands: list[Array], view: Any, parts: int
) -> Array:
    """`in_turns` on words that hold `parts` numbers each."""
    if parts == 1:
        old = in_turns(memory.view(view), index, update, operands)
        return old.view(memory.dtype)
    words = [operand.view(memory.dtype) for operand in operands]

    def on_parts(old: Array, *given: Array) -> Array:
        return update(old.view(view), *(one.view(view) for one in given)).view(memory.dtype)

    return in_turns(memory, index, on_parts, words)


def update_global(
    cta: Cta,
    addresses: Lanes,
    lanes: Lanes,
    order: Order,
    width: int,
    update: Update,
    operands: list[Array],
    type_: Type,
) -> Array:
    kind, epoch = Kind.WEAK_WRITE, None
    if order.strong:
        kind = Kind.STRONG_UPDATE
        epoch = cta.races.synchronize(
            cta.agent,
            addresses.tolist(),
            lanes,
            reads=True,
            writes=True,
            acquires=order.acquires,
            releases=order.releases,
        )
    word = WORD[type_.bits]
    old = np.zeros(len(lanes), word)
    for region, inside, offsets in global_pieces(cta, addresses, lanes, width, kind, epoch):
        memory, index = region.words(width), offsets // width
        before = memory[index]
        chosen = [operand.view(word)[inside].view(type_.view) for operand in operands]
        old[inside] = on_words(memory, index, update, chosen, type_.view, type_.parts)
        cta.progress += not np.array_equal(before, memory[index])
    return old


@instruction("fence", "membar")
def fence(d: Decoder) -> Action:
    """A fence between CTAs. A fence of scope .cta does nothing: we model no order within a CTA that
    it could give."""
    kind = d.take("sc", "acq_rel", "proxy")
    scope = d.take("cta", "gl", "gpu", "sys", "cluster")
    if kind == "proxy" or scope is None:
        raise d.unknown()
    d.finish(0)
    if scope == "cta":
        return lambda cta: None
    return lambda cta: cta.races.fence(cta.agent, cta.lanes)
