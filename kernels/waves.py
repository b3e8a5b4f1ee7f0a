"""Matrices in one launch, ordered so that a gradient is read again while it is still in L2.

Programs stay, and take tickets. A ticket is an item of the work list; the list runs through the
tensors in waves of a few megabytes, and the first reads of the next wave stand before the second
reads of this one, which so find their sums ready. An item waits for what its tensor's earlier
phases have done, all of which have earlier tickets: somebody is at work on them, so nobody waits
for ever.

Switched on by FUSEDSTEP_TRITON_WAVES=1; not measured yet. It is to save two of eight bytes an
element. The price: smaller units leave more sums, and one kernel with all kinds of work holds more
registers, so fewer threads hide the memory's latency.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from .cut import FLAT_WIDTH, TINY_ELEMENTS, Kind, Layout
from .walk import item

WAVE_BYTES = 12 << 20  # of gradients; two waves and their parameters pass through L2 at a time
REGIONS = 2  # waves whose sums down the columns are in the scratch at a time
ENTRY = tl.constexpr(8)  # numbers of an entry, one of them unused
LEAST_ROWS = 32  # of a unit: all those under way must be in L2
NARROWEST, WIDEST = 33, 4096  # columns


def take(batch: int, rows: int, cols: int) -> bool:
    """Whether a matrix goes in waves. Tiny, flat, narrow and wide ones go in phases: a kernel with
    their kinds of work too would not fit into the registers."""
    tiny = batch > 1 and rows * cols <= TINY_ELEMENTS
    flat = rows <= LEAST_ROWS and cols > FLAT_WIDTH
    return not tiny and not flat and NARROWEST <= cols <= WIDEST


def cut_into_waves(gradient_bytes: list[int], tensors: list[int]) -> list[list[int]]:
    """Runs of tensors whose gradients fit into a wave; a larger one is a wave of its own."""
    waves: list[list[int]] = []
    filled = WAVE_BYTES
    for tensor in tensors:
        if filled + gradient_bytes[tensor] > WAVE_BYTES:
            waves.append([])
            filled = 0
        waves[-1].append(tensor)
        filled += gradient_bytes[tensor]
    return waves


def share_partials(layout: Layout, waves: list[list[int]]) -> None:
    """Lets waves that are never under way together have their sums in the same memory."""
    need = [sum(layout.cuts[tensor].partials for tensor in wave) for wave in waves]
    others = set(range(len(layout.cuts))) - {tensor for wave in waves for tensor in wave}
    at = 0
    for tensor in others:
        layout.cuts[tensor].partials_at = at
        at += layout.cuts[tensor].partials
    for number, wave in enumerate(waves):
        place = at + number % REGIONS * max(need)
        for tensor in wave:
            layout.cuts[tensor].partials_at = place
            place += layout.cuts[tensor].partials
    layout.partials = at + REGIONS * max(need, default=0)


def entries(layout: Layout, waves: list[list[int]], kinds: list[Kind]) -> list[tuple[int, ...]]:
    """The work list: kind, tensor, unit, items of the tensor to wait for, another counter and what
    to wait for there, another counter to count on or -1, and 0.

    There is a counter for each tensor, then one for each wave, of tensors that are done with the
    sums down their columns.
    """
    tensors = len(layout.cuts)
    number = {kind: index for index, kind in enumerate(kinds)}

    def of_phases(wave: int, *phases: int) -> Iterator[tuple[int, ...]]:
        before = wave - REGIONS  # which had the same memory
        gate = (tensors + before, len(waves[before])) if before >= 0 else (0, 0)
        for phase in phases:
            for tensor in waves[wave]:
                work = layout.work[tensor]
                need = sum(units for kind, units in work.items() if kind.phase < phase)
                for kind, units in work.items():
                    if kind.phase == phase:
                        also = tensors + wave if kind.name == "FINISH" else -1
                        first = gate if need == 0 else (0, 0)
                        for unit in range(units):
                            yield number[kind], tensor, unit, need, *first, also, 0

    result = [*of_phases(0, 2)]
    for wave in range(len(waves)):
        result += of_phases(wave, 3, 4, 5)
        if wave + 1 < len(waves):
            result += of_phases(wave + 1, 2)
        result += of_phases(wave, 6, 7)
    return result


@triton.jit
def wait(counter, need):
    """Until others have counted so far; what they wrote before they counted can be read then."""
    if need > 0:
        while tl.atomic_add(counter, 0, sem="acquire") < need:
            pass


@triton.jit(do_not_specialize=["count"])
def walk(
    entries,
    count,
    counters,  # of tickets, then what the entries name
    table,
    cuts,
    row_of,
    scalars,
    controls,
    partials,
    sums,
    NAMES: tl.constexpr,  # of the kinds, by number; and their tiles
    WIDTHS: tl.constexpr,
    TILES: tl.constexpr,
    UPDATE: tl.constexpr,
    DTYPES: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
    VECTOR: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    lists = (table, cuts, row_of, scalars, controls, partials, sums)
    if tl.load(controls + 1) == 0:
        done = counters + 1
        ticket = tl.atomic_add(counters, 1, sem="relaxed")
        while ticket < count:
            entry = entries + ENTRY * ticket
            kind = tl.load(entry)
            tensor = tl.load(entry + 1)
            unit = tl.load(entry + 2)
            also = tl.load(entry + 6)
            wait(done + tensor, tl.load(entry + 3))
            wait(done + tl.load(entry + 4), tl.load(entry + 5))
            at = tensor.to(tl.int64)
            for k in tl.static_range(len(NAMES)):
                if kind == k:
                    item(
                        lists,
                        at,
                        unit,
                        NAMES[k],
                        WIDTHS[k],
                        TILES[k],
                        UPDATE,
                        DTYPES,
                        T,
                        W,
                        VECTOR,
                        ALIGNED,
                    )
            tl.debug_barrier()  # every thread has stored what it had to
            tl.atomic_add(done + tensor, 1, sem="release")
            if also >= 0:
                tl.atomic_add(done + also, 1, sem="release")
            ticket = tl.atomic_add(counters, 1, sem="relaxed")
