"""What one memory access touches: its space and addresses, with checks of bounds and races, and
counts of requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cta import Cta
from .cta_races import Kind
from .decode import TYPES, Decoder
from .faults import Fault
from .memory import LINE
from .syntax import LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, Address, Register

Array = NDArray[Any]
Lanes = NDArray[np.int64]

SPACES = ("global", "shared", "shared::cta", "local", "param", "param::entry", "const")
WINDOWS = {"local": LOCAL_WINDOW, "shared": SHARED_WINDOW, "param": PARAM_WINDOW}
SCOPES = ("cta", "cluster", "gpu", "sys")
ORDERS = ("weak", "volatile", "relaxed", "acquire", "release", "acq_rel", "mmio")
CACHE_HINTS = ("ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "unified")


@dataclass(frozen=True)
class Place:
    """A memory operand: `count` elements of `element` bytes at [register + offset] in a space."""

    space: str  # empty for a generic address
    register: int
    offset: int
    element: int
    count: int = 1

    @property
    def width(self) -> int:
        return self.element * self.count


@dataclass(frozen=True)
class Order:
    """The ordering of an access in the memory model."""

    strong: bool = False
    acquires: bool = False
    releases: bool = False


def memory_order(d: Decoder, default: str) -> Order:
    """Reads modifiers such as .acquire and .gpu. An access of scope .cta is weak between CTAs."""
    order, scope = d.take(*ORDERS) or default, d.take(*SCOPES)
    strong = order != "weak" and scope != "cta"
    return Order(
        strong,
        strong and order in ("acquire", "acq_rel"),
        strong and order in ("release", "acq_rel"),
    )


def cache_hints(d: Decoder) -> int:
    """Reads the modifiers that are only cache hints. Returns how many operands they add."""
    d.take_where(lambda word: word in CACHE_HINTS or word.startswith(("L1::", "L2::evict")))
    d.take_where(lambda word: word in ("L2::64B", "L2::128B", "L2::256B"))
    return len(d.take_where(lambda word: word == "L2::cache_hint"))


def place(d: Decoder, operand: int, space: str | None, element: int, count: int = 1) -> Place:
    """The place that an address operand names."""
    given = d.operands[operand]
    if not isinstance(given, Address):
        raise d.unknown()
    base = given.base
    if isinstance(base, Register):
        if base.width not in (32, 64):
            raise d.unknown()
        number = base.number
    else:
        number = d.source(base, TYPES["b64"])
    kind = (space or "").split("::")[0]
    found = Place(kind, number, given.offset, element, count)
    note_granule(d, kind, found.width)
    return found


def note_granule(d: Decoder, space: str, width: int) -> None:
    """Makes the granule of race detection as small as the smallest access of the kernel."""
    program = d.program
    if space in ("global", ""):
        program.global_granule = min(program.global_granule, width)
    if space in ("shared", ""):
        program.shared_granule = min(program.shared_granule, width)


def locate(cta: Cta, place: Place, lanes: Lanes) -> tuple[str, Lanes]:
    """The space of a place at run time, and each lane's address in that space."""
    cta.demand(place.register, "an address")
    base = cta.registers[place.register]
    if len(lanes) != cta.threads:
        base = base[lanes]
    addresses = base.astype(np.int64) + place.offset
    if place.space:
        return place.space, addresses
    for space, window in WINDOWS.items():
        inside = (addresses >= window) & (addresses < 2 * window)
        if inside.all():
            return space, addresses - window
        if inside.any():
            raise Fault("one access reaches into two memory spaces")
    return "global", addresses


def global_pieces(
    cta: Cta,
    addresses: Lanes,
    lanes: Lanes,
    width: int,
    kind: Kind,
    epoch: int | None = None,
    words: Array | None = None,
) -> list[tuple[Any, Any, Lanes]]:
    """Checks an access to global memory. Returns for each region: the region, the lanes that access
    it, and their offsets.

    `words` is what a plain store writes, one row per lane.
    """
    pieces = []
    for number, inside in cta.memory.find(addresses, width, lanes):
        region = cta.memory.regions[number]
        offsets = addresses[inside] - region.base
        known = cta.known.get(number)
        granule = cta.program.global_granule
        if known is None:
            size = -(-(region.end - region.base) // granule)
            known = cta.known[number] = np.zeros(size, np.int32)
        try:
            cta.races.access(cta.agent, known, offsets, width, lanes[inside], kind, epoch)
            if cta.thread_races is not None:
                among = (cta, number, region.end - region.base, offsets, width, lanes[inside])
                if kind is Kind.WEAK_READ:
                    cta.thread_races.read(*among)
                elif words is not None and kind is Kind.WEAK_WRITE:
                    cta.thread_races.write(*among, words[inside])
        except Fault as fault:
            first = int(addresses[inside][0])
            raise Fault(f"{fault}; in {region.name(first)}") from None
        pieces.append((region, inside, offsets))
    return pieces


def count_requests(cta: Cta, name: str, addresses: Lanes, lanes: Lanes, width: int) -> None:
    """Counts the requests of warps, the 32-byte sectors they touch, and how few could do."""
    counts = cta.requests
    if len(lanes) == cta.threads and not len(lanes) % 32:
        by_warp = addresses.reshape(-1, 32)
    else:
        by_warp = np.full((-(-cta.threads // 32), 32), -1, np.int64)
        by_warp.reshape(-1)[lanes] = addresses
    by_warp = np.sort(by_warp, axis=1)
    there = by_warp >= 0
    distinct = count_distinct(by_warp, there)
    key = f"{name}.{width * 8}"
    counts[key] += int(np.count_nonzero(distinct))
    counts["sectors"] += int(count_distinct(by_warp // LINE, there).sum())
    counts["ideal_sectors"] += int((-(-distinct * width // LINE)).sum())
    counts[f"{name}.bytes"] += width * len(lanes)


def count_distinct(rows: Lanes, there: NDArray[np.bool_]) -> Lanes:
    """How many different numbers each sorted row has, where `there` is true."""
    first = there.copy()
    first[:, 1:] &= rows[:, 1:] != rows[:, :-1]
    return np.asarray(first.sum(axis=1))
