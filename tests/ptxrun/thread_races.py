"""Finds conflicting accesses of two threads of a CTA to global memory with no barrier between."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .faults import Fault

Lanes = NDArray[np.int64]

LANE_BITS = 16
SEVERAL = (1 << LANE_BITS) - 1


class ThreadRaces:
    """The last plain writer and reader of each granule, as interval << 16 | thread.

    An interval is the time of one CTA between two barriers. Its number is unique across CTAs, so
    nothing has to be cleared at a barrier. For races between CTAs see cta_races.py.
    """

    def __init__(self, granule: int) -> None:
        self.granule = granule
        self._intervals = itertools.count(1)
        self._known: dict[int, tuple[Lanes, Lanes]] = {}

    def begin_interval(self) -> int:
        return next(self._intervals) << LANE_BITS

    def _cells(self, region: int, size: int, offsets: Lanes, width: int) -> tuple[Lanes, ...]:
        known = self._known.get(region)
        if known is None:
            count = -(-size // self.granule)
            known = (np.zeros(count, np.int64), np.zeros(count, np.int64))
            self._known[region] = known
        return *known, (offsets // self.granule)[:, None] + np.arange(width // self.granule)

    def read(
        self, cta: Any, region: int, size: int, offsets: Lanes, width: int, lanes: Lanes
    ) -> None:
        writer, reader, cells = self._cells(region, size, offsets, width)
        code = (cta.interval + lanes)[:, None]
        self._refuse(cta, writer[cells], code, "reads what {} wrote")
        before = reader[cells]
        entered = np.broadcast_to(code, cells.shape)
        shared = (before >> LANE_BITS == cta.interval >> LANE_BITS) & (before != code)
        if shared.any():
            entered = np.where(shared, cta.interval + SEVERAL, code)
        reader[cells] = entered
        lost = reader[cells] != entered  # several lanes read one granule in one instruction
        if lost.any():
            reader[cells[lost]] = cta.interval + SEVERAL

    def write(
        self,
        cta: Any,
        region: int,
        size: int,
        offsets: Lanes,
        width: int,
        lanes: Lanes,
        words: NDArray[Any],
    ) -> None:
        """`words` has what each lane writes, one row per lane."""
        writer, reader, cells = self._cells(region, size, offsets, width)
        code = (cta.interval + lanes)[:, None]
        self._refuse(cta, writer[cells], code, "writes what {} wrote")
        self._refuse(cta, reader[cells], code, "writes what {} read")
        writer[cells] = code
        if (writer[cells] != code).any():
            order = np.argsort(offsets, kind="stable")
            there, rows = offsets[order], words[order]
            differ = (there[1:] == there[:-1]) & (rows[1:] != rows[:-1]).any(axis=1)
            if differ.any():
                first, second = lanes[order][np.flatnonzero(differ)[0] :][:2]
                raise Fault(f"threads {first} and {second} write different values to one place")

    def _refuse(self, cta: Any, known: Lanes, code: Lanes, deed: str) -> None:
        if known.max() < cta.interval:
            return
        bad = (known >> LANE_BITS == cta.interval >> LANE_BITS) & (known != code)
        # After a warp barrier, threads of one warp get the benefit of the doubt: we do not record
        # which lanes met.
        if cta.warps_met:
            other = known & SEVERAL
            bad &= (other // 32 != (code & SEVERAL) // 32) & (other != SEVERAL)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            thread = int(code[row, 0]) & SEVERAL
            other = int(known[row, column]) & SEVERAL
            name = "other threads" if other == SEVERAL else f"thread {other}"
            raise Fault(
                f"race between threads: thread {thread} {deed.format(name)} since the last barrier"
            )
