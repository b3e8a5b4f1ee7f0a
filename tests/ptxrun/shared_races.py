"""Finds conflicting accesses of two threads to shared memory with no barrier between them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .faults import Fault

NOBODY = -1
Lanes = NDArray[np.int64]


class SharedRaces:
    """Who wrote and who read each granule of shared memory since the last barrier of the CTA.

    The code of a reader is the number of a thread, `threads + w` for several threads of warp w, or
    `many` for threads of several warps. Clocks count the warp barriers of each thread: they order
    the threads of one warp.
    """

    def __init__(self, size: int, threads: int, granule: int) -> None:
        self.granule = granule
        self.threads = threads
        self.many = 2 * threads
        granules = -(-size // granule)
        self.writer = np.full(granules, NOBODY, np.int64)
        self.reader = np.full(granules, NOBODY, np.int64)
        self.write_clock = np.zeros(granules, np.int64)
        self.read_clock = np.zeros(granules, np.int64)
        self.clock = np.zeros(threads, np.int64)
        self.touched = False

    def barrier(self) -> None:
        """All threads of the CTA met, so no earlier access conflicts with a later one."""
        if self.touched:
            self.writer.fill(NOBODY)
            self.reader.fill(NOBODY)
            self.touched = False

    def warp_barrier(self, lanes: Lanes) -> None:
        self.clock[lanes] += 1

    def read(self, offsets: Lanes, width: int, lanes: Lanes) -> None:
        """Lanes read `width` bytes at their offsets."""
        cells, who = self._cells(offsets, width, lanes)
        self._refuse_other_writers(cells, who, "reads")
        code = self._merge(self.reader[cells], who)
        # Several lanes may read one granule in one instruction: merge their codes until no code
        # changes.
        while True:
            self.reader[cells] = code
            joined = self._merge(self.reader[cells], code)
            if np.array_equal(joined, code):
                break
            code = joined
        np.maximum.at(self.read_clock, cells.ravel(), self.clock[who].ravel())

    def write(self, offsets: Lanes, width: int, lanes: Lanes, values: NDArray[np.uint8]) -> None:
        """Lanes write `values`, one row of bytes per lane. Lanes of one store may write the same
        value to the same place."""
        cells, who = self._cells(offsets, width, lanes)
        self._refuse_other_writers(cells, who, "writes")
        self._refuse_other_readers(cells, who)
        self.writer[cells] = who
        self.write_clock[cells] = self.clock[who]
        if (self.writer[cells] != who).any():
            parts = values.reshape(cells.shape[0], cells.shape[1], -1)
            order = np.argsort(cells.ravel(), kind="stable")
            flat, bytes_ = cells.ravel()[order], parts.reshape(-1, parts.shape[-1])[order]
            same_cell = flat[1:] == flat[:-1]
            differ = same_cell & (bytes_[1:] != bytes_[:-1]).any(axis=1)
            if differ.any():
                place = int(np.flatnonzero(differ)[0])
                two = who.ravel()[order][place : place + 2]
                raise Fault(
                    f"shared-memory race: threads {two[0]} and {two[1]} write different values "
                    f"to byte {int(flat[place]) * self.granule} at once"
                )

    def update(self, offsets: Lanes, width: int, lanes: Lanes) -> None:
        """Lanes update words atomically. This conflicts with plain accesses only."""
        cells, who = self._cells(offsets, width, lanes)
        writer = self.writer[cells]
        plain = (writer != NOBODY) & (writer != self.many)
        self._refuse_other_writers(cells[plain], who[plain], "updates")
        self._refuse_other_readers(cells, who)
        self.writer[cells] = self.many
        self.write_clock[cells] = self.clock[who]

    def _cells(self, offsets: Lanes, width: int, lanes: Lanes) -> tuple[Lanes, Lanes]:
        self.touched = True
        cells = (offsets // self.granule)[:, None] + np.arange(width // self.granule)
        return cells, np.broadcast_to(lanes[:, None], cells.shape)

    def _merge(self, before: Lanes, code: Lanes) -> Lanes:
        """The narrowest code that stands for both."""
        warps = self.threads + self._warp(before)
        both = np.where(warps == self.threads + self._warp(code), warps, self.many)
        both = np.where((before == self.many) | (code == self.many), self.many, both)
        return np.where((before == code) | (before == NOBODY), code, both)

    def _warp(self, code: Lanes) -> Lanes:
        return np.where(code >= self.threads, code - self.threads, code // 32)

    def _refuse_other_writers(self, cells: Lanes, who: Lanes, verb: str) -> None:
        writer = self.writer[cells]
        other = (writer != NOBODY) & (writer != who)
        if not other.any():
            return
        synced = (writer // 32 == who // 32) & (self.write_clock[cells] < self.clock[who])
        self._refuse(other & ~synced, cells, who, writer, verb, "wrote")

    def _refuse_other_readers(self, cells: Lanes, who: Lanes) -> None:
        reader = self.reader[cells]
        other = (reader != NOBODY) & (reader != who)
        if not other.any():
            return
        same_warp = (reader != self.many) & (self._warp(reader) == who // 32)
        synced = same_warp & (self.read_clock[cells] < self.clock[who])
        self._refuse(other & ~synced, cells, who, reader, "writes", "read")

    def _refuse(
        self, bad: NDArray[np.bool_], cells: Lanes, who: Lanes, code: Lanes, verb: str, did: str
    ) -> None:
        if not bad.any():
            return
        first = tuple(np.argwhere(bad)[0])
        other = int(code[first])
        name = f"thread {other}"
        if other == self.many:
            name = "threads of several warps"
        elif other >= self.threads:
            name = f"threads of warp {other - self.threads}"
        raise Fault(
            f"shared-memory race: thread {who[first]} {verb} byte "
            f"{int(cells[first]) * self.granule} that {name} {did} since the last barrier"
        )
