"""Loads and stores: ld, st, cp.async, and instructions that only control caches."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cta import Cta
from .cta_races import Kind
from .decode import SINK, TYPES, WORD, Action, Decoder, Type, instruction
from .faults import Fault
from .memory import WORDS
from .places import (
    SPACES,
    Order,
    Place,
    cache_hints,
    count_requests,
    global_pieces,
    locate,
    memory_order,
    place,
)
from .syntax import Immediate

Array = NDArray[Any]
Lanes = NDArray[np.int64]


def vector_length(d: Decoder) -> int:
    found = d.take("v2", "v4", "v8")
    return int(found[1]) if found else 1


@instruction("ld", "ldu")
def load(d: Decoder) -> Action:
    order, space, count = memory_order(d, "weak"), d.take(*SPACES), vector_length(d)
    extra = cache_hints(d)
    type_ = d.type()
    d.finish(2 + extra)
    members = d.members(0)
    if len(members) != count:
        raise d.unknown()
    targets = [d.target(member, type_.bits, wider=True) for member in members]
    source = place(d, 1, space, type_.bits // 8, count)
    d.step.yields = order.strong and source.space in ("", "global")
    places = [(target, d.width(target, type_.bits)) for target in targets]

    def action(cta: Cta) -> None:
        lanes = cta.lanes
        space, addresses = locate(cta, source, lanes)
        words, undefined = read(cta, space, addresses, lanes, source, order)
        for column, (target, width) in enumerate(places):
            value = spread(cta, lanes, words[:, column], type_, width)
            bits = None
            if undefined is not None:
                bits = spread(cta, lanes, undefined[:, column], type_, width)
            cta.write_bits(target, value, bits)

    return action


def spread(cta: Cta, lanes: Lanes, values: Array, type_: Type, width: int) -> Array:
    """The contents of a register from the values of some lanes, sign- or zero-extended."""
    if width != type_.bits:
        kind = "i" if type_.is_signed else "u"
        values = values.view(f"{kind}{type_.bits // 8}").astype(f"{kind}{width // 8}")
    word = WORD[width]
    if len(lanes) == cta.threads:
        return np.ascontiguousarray(values).view(word)
    register = np.zeros(cta.threads, word)
    register[lanes] = values.view(word)
    return register


def elements(offsets: Lanes, source: Place) -> Lanes:
    """Indices of words, one row per lane."""
    return (offsets // source.element)[:, None] + np.arange(source.count)


def read(
    cta: Cta, space: str, addresses: Lanes, lanes: Lanes, source: Place, order: Order
) -> tuple[Array, Array | None]:
    """The words that the lanes load, one row per lane, and which of their bits are undefined."""
    width = source.width
    if space == "global":
        return read_global(cta, addresses, lanes, source, order), None
    if space == "param":
        if (addresses < 0).any() or (addresses + width > len(cta.params)).any():
            raise Fault("out of bounds of the parameters")
        if (addresses % width).any():
            raise Fault(f"misaligned: {width} bytes of the parameters")
        raw = cta.params[addresses[:, None] + np.arange(width)]
        return raw.view(WORDS[source.element]), None
    if space == "const":
        return read_constants(cta, addresses, lanes, source), None
    index, scratch = scratch_index(cta, space, addresses, lanes, source)
    if space == "shared":
        cta.shared_races.read(addresses, width, lanes)
    words, undefined = scratch.load(index, source.element)
    return words, undefined if undefined.any() else None


def scratch_index(
    cta: Cta, space: str, addresses: Lanes, lanes: Lanes, where: Place
) -> tuple[Lanes, Any]:
    """Indices into shared memory, or into each lane's own local memory, after a bounds check."""
    if space == "shared":
        cta.shared.check(addresses, where.width, lanes, cta.shared.size)
        return elements(addresses, where), cta.shared
    if space == "local":
        own = cta.program.local_bytes
        cta.local.check(addresses, where.width, lanes, own)
        return elements(addresses + lanes * own, where), cta.local
    raise Fault(f"access to {space} memory is not modelled here")


def read_global(cta: Cta, addresses: Lanes, lanes: Lanes, source: Place, order: Order) -> Array:
    count_requests(cta, "ld.global", addresses, lanes, source.width)
    kind = Kind.WEAK_READ
    if order.strong:
        kind = Kind.STRONG_READ
        cta.races.synchronize(
            cta.agent,
            addresses.tolist(),
            lanes,
            reads=True,
            writes=False,
            acquires=order.acquires,
            releases=False,
        )
    pieces = global_pieces(cta, addresses, lanes, source.width, kind)
    if len(pieces) == 1:
        region, _, offsets = pieces[0]
        return np.asarray(region.words(source.element)[elements(offsets, source)])
    words = np.zeros((len(lanes), source.count), WORDS[source.element])
    for region, inside, offsets in pieces:
        words[inside] = region.words(source.element)[elements(offsets, source)]
    return words


def read_constants(cta: Cta, addresses: Lanes, lanes: Lanes, source: Place) -> Array:
    """Reads module variables. No kernel writes them, so we count no requests and look for no
    races."""
    words = np.zeros((len(lanes), source.count), WORDS[source.element])
    for number, inside in cta.memory.find(addresses, source.width, lanes):
        region = cta.memory.regions[number]
        words[inside] = region.words(source.element)[
            elements(addresses[inside] - region.base, source)
        ]
    return words


@instruction("st")
def store(d: Decoder) -> Action:
    order, space, count = memory_order(d, "weak"), d.take(*SPACES), vector_length(d)
    extra = cache_hints(d)
    type_ = d.type()
    d.finish(2 + extra)
    members = d.members(1)
    if len(members) != count:
        raise d.unknown()
    target = place(d, 0, space, type_.bits // 8, count)
    if target.space in ("param", "const"):
        raise d.unknown()
    sources = []
    for member in members:
        wide = getattr(member, "width", type_.bits)
        kind = TYPES[f"b{wide}"] if wide > type_.bits else type_
        sources.append(d.source(member, kind))
    d.step.yields = order.strong and target.space in ("", "global")
    word = WORD[type_.bits]

    def action(cta: Cta) -> None:
        lanes = cta.lanes
        space, addresses = locate(cta, target, lanes)
        words = np.stack([cta.registers[n][lanes] for n in sources], axis=1)
        if space == "global":
            for number in sources:
                cta.demand(number, "a value to store")
            write_global(cta, addresses, lanes, target, order, words.astype(word, copy=False))
            return
        zero = np.zeros(cta.threads, word)
        undefined = np.stack([cta.undefined.get(n, zero)[lanes] for n in sources], axis=1)
        words = words.astype(word, copy=False)
        index, scratch = scratch_index(cta, space, addresses, lanes, target)
        if space == "shared":
            rows = words.view(np.uint8).reshape(len(lanes), -1)
            cta.shared_races.write(addresses, target.width, lanes, rows)
        scratch.store(index, target.element, words, undefined.astype(word, copy=False))

    return action


def write_global(
    cta: Cta, addresses: Lanes, lanes: Lanes, target: Place, order: Order, words: Array
) -> None:
    count_requests(cta, "st.global", addresses, lanes, target.width)
    kind, epoch = Kind.WEAK_WRITE, None
    if order.strong:
        kind = Kind.STRONG_WRITE
        epoch = cta.races.synchronize(
            cta.agent,
            addresses.tolist(),
            lanes,
            reads=False,
            writes=True,
            acquires=False,
            releases=order.releases,
        )
    pieces = global_pieces(cta, addresses, lanes, target.width, kind, epoch, words)
    for region, inside, offsets in pieces:
        memory, index = region.words(target.element), elements(offsets, target)
        if not order.strong or (memory[index] != words[inside]).any():
            cta.progress += 1
        memory[index] = words[inside]


@instruction("cp")
def copy_async(d: Decoder) -> Action:
    """cp.async copies at once, so a missing wait is not found."""
    if d.take("async") is None or d.take("bulk", "reduce", "mbarrier"):
        raise d.unknown()
    if d.take("commit_group", "wait_all", "wait_group"):
        return lambda cta: None
    d.take("ca", "cg")
    extra = cache_hints(d)
    if not d.take("shared", "shared::cta") or not d.take("global"):
        raise d.unknown()
    size = d.operands[2] if len(d.operands) > 2 else None
    if not isinstance(size, Immediate) or size.bits not in (4, 8, 16):
        raise d.unknown()
    has_source_size = len(d.operands) - extra == 4
    d.finish(3 + has_source_size + extra)
    element = min(size.bits, 8)
    into = place(d, 0, "shared", element, size.bits // element)
    source = place(d, 1, "global", element, size.bits // element)
    wanted = d.source(3, TYPES["u32"]) if has_source_size else SINK

    def action(cta: Cta) -> None:
        lanes = cta.lanes
        _, to = locate(cta, into, lanes)
        _, addresses = locate(cta, source, lanes)
        words = np.zeros((len(lanes), source.count), WORDS[element])
        takes = np.ones(len(lanes), bool)
        if wanted != SINK:
            sizes = cta.registers[wanted][lanes]
            if not np.isin(sizes, (0, size.bits)).all():
                raise Fault("cp.async of part of its size is not modelled")
            takes = sizes != 0
        if takes.any():
            words[takes] = read_global(cta, addresses[takes], lanes[takes], source, Order())
        index, scratch = scratch_index(cta, "shared", to, lanes, into)
        rows = words.view(np.uint8).reshape(len(lanes), -1)
        cta.shared_races.write(to, into.width, lanes, rows)
        scratch.store(index, element, words, np.zeros_like(words))

    return action


@instruction("prefetch", "prefetchu", "applypriority", "discard")
def cache_control(d: Decoder) -> Action:
    if d.opcode == "discard":
        raise d.unknown()
    return lambda cta: None


@instruction("createpolicy")
def create_policy(d: Decoder) -> Action:
    """A policy is an opaque word for the caches, so 0 will do."""
    target = d.target(0, 64)
    return lambda cta: cta.write_bits(target, np.zeros(cta.threads, np.uint64), None)
