"""Exchanges between the lanes of a warp: shuffles, votes, matches, reductions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import floats
from .arithmetic import extreme
from .cta import Cta
from .decode import SINK, TYPES, Action, Decoder, instruction
from .faults import Fault
from .syntax import Register

Array = NDArray[Any]


def by_warp(cta: Cta, values: Array, filler: Any) -> Array:
    """One row of 32 values per warp, with `filler` for inactive lanes."""
    rows = np.full((-(-cta.threads // 32), 32), filler, values.dtype)
    rows.reshape(-1)[: cta.threads] = np.where(cta.mask, values, filler)
    return rows


def ballot(cta: Cta, votes: Array) -> Array:
    """For each thread, a word with a bit for each active thread of its warp that votes yes."""
    rows = by_warp(cta, votes, False)
    words = np.packbits(rows, axis=1, bitorder="little").view(np.uint32)
    return np.repeat(words.reshape(-1), 32)[: cta.threads]


def absent(cta: Cta, mask: Array) -> Array:
    """For each active thread, the lanes that its mask names but that are not here."""
    here = ballot(cta, np.ones(cta.threads, bool))
    if cta.threads % 32:  # in the last warp, a mask of -1 names lanes that do not exist
        last = cta.threads - cta.threads % 32
        beyond = np.uint32(0xFFFFFFFF << (cta.threads % 32) & 0xFFFFFFFF)
        mask = np.where(cta.all_lanes >= last, mask & ~beyond, mask)
    return np.where(cta.mask, mask & ~here, np.uint32(0))


def meeting(d: Decoder, operand: int) -> int:
    """The register with the mask of lanes that execute an instruction together.

    Lanes that arrive early wait for the others, as on a GPU.
    """
    members = d.source(operand, TYPES["b32"])
    if d.step.guard is None:
        d.step.complete = lambda cta: not absent(cta, cta.registers[members]).any()
    return members


def require_members(cta: Cta, members: int) -> None:
    """Faults unless each active thread is in its own mask, and all lanes in that mask are here."""
    cta.demand(members, "a mask of lanes")
    mask = cta.registers[members]
    lane = np.uint32(1) << (cta.all_lanes % 32).astype(np.uint32)
    for problem, bad in (
        ("names lanes that are not here", absent(cta, mask) != 0),
        ("does not name its own lane", (mask & lane) == 0),
    ):
        bad = bad & cta.mask
        if bad.any():
            raise Fault(f"the mask of lanes of thread {int(np.flatnonzero(bad)[0])} {problem}")


@instruction("shfl")
def shuffle(d: Decoder) -> Action:
    mode = d.take("up", "down", "bfly", "idx")
    if d.take("sync") is None or mode is None or d.type().name != "b32":
        raise d.unknown()
    d.finish(5)
    targets = d.members(0)
    target = d.target(targets[0], 32)
    predicate = d.target(targets[1], 1) if len(targets) > 1 else SINK
    b32 = TYPES["b32"]
    value, by, limits = (d.source(place, b32) for place in (1, 2, 3))
    members = meeting(d, 4)
    lane = (np.arange(d.program.threads) % 32).astype(np.int64)
    first_of_warp = np.arange(d.program.threads) - lane

    def action(cta: Cta) -> None:
        require_members(cta, members)
        for control in (by, limits):
            cta.demand(control, "a lane")
        registers = cta.registers
        step = (registers[by] & np.uint32(31)).astype(np.int64)
        clamp = (registers[limits] & np.uint32(31)).astype(np.int64)
        segment = (registers[limits] >> np.uint32(8) & np.uint32(31)).astype(np.int64)
        lowest = lane & segment
        highest = lowest | (clamp & ~segment)
        source = {
            "up": lane - step,
            "down": lane + step,
            "bfly": lane ^ step,
            "idx": lowest | (step & ~segment),
        }[mode]
        inside = source >= highest if mode == "up" else source <= highest
        source = first_of_warp + np.where(inside, source, lane)
        reaches = source < cta.threads
        present = reaches & cta.mask[np.where(reaches, source, 0)]
        if (cta.mask & ~present).any():
            thread = int(np.flatnonzero(cta.mask & ~present)[0])
            raise Fault(f"thread {thread} reads the lane of a thread that is not here")
        source = np.where(present, source, cta.all_lanes)
        unknown = cta.undefined.get(value)
        bits = None if unknown is None else unknown[source]
        cta.write_bits(target, registers[value][source], bits)
        if predicate != SINK:
            cta.write_bits(predicate, inside, None)

    return action


@instruction("vote")
def vote(d: Decoder) -> Action:
    mode = d.take("all", "any", "uni", "ballot")
    if d.take("sync") is None or mode is None:
        raise d.unknown()
    type_ = d.type()
    d.finish(3)
    given = d.operands[1]
    if not isinstance(given, Register) or type_.name != ("b32" if mode == "ballot" else "pred"):
        raise d.unknown()
    target, members = d.target(0, type_.bits), meeting(d, 2)

    def action(cta: Cta) -> None:
        require_members(cta, members)
        cta.demand(given.number, "a vote")
        yes = ballot(cta, cta.registers[given.number] ^ given.negated)
        everyone = ballot(cta, np.ones(cta.threads, bool))
        outcome = {
            "ballot": yes,
            "any": yes != 0,
            "all": yes == everyone,
            "uni": (yes == 0) | (yes == everyone),
        }[mode]
        cta.write_bits(target, outcome, None)

    return action


@instruction("activemask")
def active_mask(d: Decoder) -> Action:
    d.type()
    d.finish(1)
    target = d.target(0, 32)
    return lambda cta: cta.write_bits(target, ballot(cta, np.ones(cta.threads, bool)), None)


@instruction("match")
def match(d: Decoder) -> Action:
    mode, sync, type_ = d.take("any", "all"), d.take("sync"), d.type()
    d.finish(3)
    if sync is None or mode is None or type_.bits not in (32, 64):
        raise d.unknown()
    targets = d.members(0)
    target = d.target(targets[0], 32)
    predicate = d.target(targets[1], 1) if len(targets) > 1 else SINK
    value, members = d.source(1, type_), meeting(d, 2)

    def action(cta: Cta) -> None:
        require_members(cta, members)
        cta.demand(value, "a value to match")
        values = cta.registers[value]
        result = np.zeros(cta.threads, np.uint32)
        everyone = ballot(cta, np.ones(cta.threads, bool))
        for lane in cta.lanes:
            same = ballot(cta, values == values[lane])
            result[lane] = same[lane]
        if mode == "all":
            agreed = result == everyone
            cta.write_bits(predicate, agreed, None)
            result = np.where(agreed, result, np.uint32(0))
        cta.write_bits(target, result, None)

    return action


@instruction("elect")
def elect(d: Decoder) -> Action:
    """Elects the lowest lane of the warp. Hardware may elect another one."""
    if d.take("sync") is None:
        raise d.unknown()
    d.finish(2)
    targets = d.members(0)
    lane_target, predicate = d.target(targets[0], 32), d.target(targets[1], 1)
    members = meeting(d, 1)

    def action(cta: Cta) -> None:
        require_members(cta, members)
        everyone = ballot(cta, np.ones(cta.threads, bool))
        lowest = np.bitwise_count((everyone & (~everyone + np.uint32(1))) - np.uint32(1))
        cta.write_bits(lane_target, lowest.astype(np.uint32), None)
        cta.write_bits(predicate, lowest == cta.all_lanes % 32, None)

    return action


@instruction("redux")
def reduce(d: Decoder) -> Action:
    operation = d.take("add", "min", "max", "and", "or", "xor")
    takes_abs, keeps_nan = d.take("abs") is not None, d.take("NaN") is not None
    if d.take("sync") is None or operation is None:
        raise d.unknown()
    type_ = d.type()
    d.finish(3)
    logical = operation in ("and", "or", "xor")
    allowed = ("b32",) if logical else ("u32", "s32")
    if type_.name == "f32" and operation in ("min", "max"):
        function: Callable[..., Array] = extreme("f32", operation == "max", keeps_nan)
    elif type_.name in allowed and not (takes_abs or keeps_nan):
        function = {
            "add": np.add,
            "min": np.minimum,
            "max": np.maximum,
            "and": np.bitwise_and,
            "or": np.bitwise_or,
            "xor": np.bitwise_xor,
        }[operation]
    else:
        raise d.unknown()
    target, source = d.target(0, 32), d.source(1, type_)
    members = meeting(d, 2)

    def action(cta: Cta) -> None:
        require_members(cta, members)
        values = cta.registers[source].view(type_.view)
        values = np.abs(values) if takes_abs else values
        unknown = cta.undefined.get(source)
        result, bad = values.copy(), np.zeros(cta.threads, bool)
        for start in range(0, cta.threads, 32):
            lanes = np.flatnonzero(cta.mask[start : start + 32]) + start
            if not len(lanes):
                continue
            total = values[lanes[:1]]
            for lane in lanes[1:]:
                total = function(total, values[lane : lane + 1])
            result[start : start + 32] = total
            bad[start : start + 32] = unknown is not None and bool(unknown[lanes].any())
        if type_.is_float:
            result = floats.canonical(result)
        bits = np.where(bad, np.uint32(0xFFFFFFFF), np.uint32(0)) if bad.any() else None
        cta.write_bits(target, result.view(np.uint32), bits)

    return action
