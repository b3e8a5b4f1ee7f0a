"""Matrices in one launch, ordered so that a gradient is read again while it is still in L2.

Programs stay, and take tickets. A ticket is an item of the work list; the list runs through the
tensors in waves of a few megabytes, and the first reads of a later wave stand before the second
reads of this one, which so find their sums ready. An item waits for what its tensor's earlier
phases have done, all of which have earlier tickets: somebody is at work on them, so nobody waits
for ever.

It is to save two of eight bytes an element. The price: smaller units leave more sums, and programs
wait for each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from .cut import PHASES, TINY_ELEMENTS, UnitSizes, Kind, Layout

WAVE_BYTES = 12 << 20  # of gradients; a few waves and their parameters pass through L2 at a time


def wanted(variable: str) -> bool:
    """What the environment variable says."""
    asked = os.environ.get(variable, "0")
    if asked not in ("0", "1"):
        raise ValueError(f"{variable} should be 0 or 1 but is: {asked!r}")
    return asked == "1"


def take(unit_sizes: UnitSizes, item_bytes: int, batch: int, rows: int, cols: int) -> bool:
    """Whether a matrix with numbers of `item_bytes` in its gradient goes in waves. Others go in
    phases: a kernel with their kinds of work too would not fit into the registers."""
    tiny = batch > 1 and rows * cols <= TINY_ELEMENTS
    flat = rows <= unit_sizes.wave_unit[item_bytes].rows and cols > unit_sizes.flat_width
    narrowest, widest = unit_sizes.wave_cols
    return not tiny and not flat and narrowest <= cols <= widest


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


def regions(ahead: int) -> int:
    """Waves that are under way together, so that each has sums down the columns of its own."""
    return ahead + 1


def share_partials(layout: Layout, waves: list[list[int]]) -> None:
    """Lets waves that are never under way together have their sums in the same memory."""
    need = [sum(layout.partials_of[tensor] for tensor in wave) for wave in waves]
    others = set(range(len(layout.cuts))) - {tensor for wave in waves for tensor in wave}
    at = 0
    for tensor in sorted(others):
        layout.cuts[tensor].partials_at = at
        at += layout.partials_of[tensor]
    count = regions(layout.unit_sizes.waves_ahead)
    for region in range(count):
        for wave in waves[region::count]:
            place = at
            for tensor in wave:
                layout.cuts[tensor].partials_at = place
                place += layout.partials_of[tensor]
        at += max(need[region::count], default=0)
    layout.partials = at


def entries(
    layout: Layout, waves: list[list[int]], number: Mapping[Kind, int]
) -> list[tuple[int, ...]]:
    """The work list: kind, tensor, unit, items of the tensor to wait for, another counter and what
    to wait for there, another counter to count on or -1, and 0.

    There is a counter for each tensor, then one for each wave, of tensors that are done with the
    sums down their columns.
    """
    tensors, ahead = len(layout.cuts), layout.unit_sizes.waves_ahead

    def of_phases(wave: int, *names: str) -> Iterator[tuple[int, ...]]:
        """All work of the phases of these kinds."""
        before = wave - regions(ahead)  # which had the same memory
        gate = (tensors + before, len(waves[before])) if before >= 0 else (0, 0)
        for phase in map(PHASES.__getitem__, names):
            for tensor in waves[wave] if wave < len(waves) else ():
                work = layout.work[tensor]
                need = sum(units for kind, units in work.items() if kind.phase < phase)
                for kind, units in work.items():
                    if kind.phase == phase:
                        also = tensors + wave if kind.name == "FINISH" else -1
                        first = gate if need == 0 else (0, 0)
                        for unit in range(units):
                            yield number[kind], tensor, unit, need, *first, also, 0

    result = [entry for wave in range(ahead) for entry in of_phases(wave, "STATISTICS")]
    for wave in range(len(waves)):
        result += of_phases(wave, "COLUMNS", "SUM_U2", "FINISH")
        result += of_phases(wave + ahead, "STATISTICS")
        result += of_phases(wave, "UPDATE", "STORE_RMS")
    return result
