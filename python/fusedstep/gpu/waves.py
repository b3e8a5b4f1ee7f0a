"""Orders matrices in one launch, so that the second read of a gradient still finds it in L2.

Programs keep running and take tickets. A ticket is an item of the work list. The list goes through
the tensors in waves of a few megabytes. The first reads of a later wave come before the second
reads of this one, so the sums are usually ready in time. An item waits for its tensor's earlier
phases. All of those have earlier tickets, so a program already works on them: no deadlock.

This should save two of eight bytes per element. It costs more sums, because units are smaller, and
programs wait for each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from .cut import PHASES, TINY_ELEMENTS, Kind, Layout, UnitSizes

WAVE_BYTES = 12 << 20  # of gradients; a few waves with their parameters share L2


def wanted(variable: str) -> bool:
    """Whether the environment variable turns waves on."""
    asked = os.environ.get(variable, "0")
    if asked not in ("0", "1"):
        raise ValueError(f"{variable} should be 0 or 1 but is: {asked!r}")
    return asked == "1"


def take(unit_sizes: UnitSizes, item_bytes: int, batch: int, rows: int, cols: int) -> bool:
    """Whether a matrix goes in waves; its gradient's numbers have `item_bytes`. Other matrices go
    in phases: with their kinds of work, the kernel for waves would need too many registers."""
    tiny = batch > 1 and rows * cols <= TINY_ELEMENTS
    flat = rows <= unit_sizes.wave_unit[item_bytes].rows and cols > unit_sizes.flat_width
    narrowest, widest = unit_sizes.wave_cols
    return not tiny and not flat and narrowest <= cols <= widest


def cut_into_waves(gradient_bytes: list[int], tensors: list[int]) -> list[list[int]]:
    """Groups tensors whose gradients fit in a wave; a larger tensor is a wave by itself."""
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
    """How many waves run at a time. Each needs its own memory for column sums."""
    return ahead + 1


def share_partials(layout: Layout, waves: list[list[int]]) -> None:
    """Lets waves share memory for their sums if they never run at the same time."""
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
    """The work list. An entry is: kind, tensor, unit, how many items of its tensor to wait for,
    another counter, the value to wait for there, another counter to increment or -1, and 0.

    Each tensor has a counter. Then each wave has one: how many of its tensors no longer need their
    column sums.
    """
    tensors, ahead = len(layout.cuts), layout.unit_sizes.waves_ahead

    def of_phases(wave: int, *names: str) -> Iterator[tuple[int, ...]]:
        """All work of the phases that these kinds are in."""
        before = wave - regions(ahead)  # the last wave that used the same memory
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
