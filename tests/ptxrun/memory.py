"""The tensors that a kernel may access, and shared and local memory, checked byte by byte."""

from __future__ import annotations

import bisect
import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .faults import Fault

Lanes = NDArray[np.int64]
WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
LINE = 32  # bytes of a sector; no access is wider


class Region:
    """A range of registered memory. Tensors that overlap share one region."""

    def __init__(self, start: int, end: int, owners: list[tuple[int, int, str]]) -> None:
        self.start, self.end, self.owners = start, end, owners
        self.base = start // LINE * LINE
        self._words: dict[int, NDArray[Any]] = {}

    def words(self, width: int) -> NDArray[Any]:
        """The memory as an array of words of `width` bytes, from the start of its first sector."""
        if width not in self._words:
            count = (self.end - self.base) // width
            array = (ctypes.c_uint8 * (count * width)).from_address(self.base)
            self._words[width] = np.frombuffer(array, WORDS[width])
        return self._words[width]

    def name(self, address: int) -> str:
        """The name of the tensor that contains an address, or else is nearest to it."""
        return min(self.owners, key=lambda owner: max(owner[0] - address, address - owner[1] + 1))[
            2
        ]


class Memory:
    """The registered tensors.

    Bounds are checked by address. An access beyond one tensor that hits another is not found, so
    tests leave gaps between tensors that are views of one buffer.
    """

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self._starts: list[int] = []
        self._owners: list[tuple[int, int, str]] = []
        self._alive: list[Any] = []
        self._stale = False

    def add(self, tensor: Any, name: str) -> None:
        """Registers a torch tensor or numpy array: all bytes from its first to its last element."""
        if hasattr(tensor, "data_ptr"):
            start = tensor.data_ptr()
            axes = zip(tensor.shape, tensor.stride(), strict=True)
            last = sum((size - 1) * stride for size, stride in axes)
            size = (last + 1) * tensor.element_size() if tensor.numel() else 0
        else:
            start, end = np.lib.array_utils.byte_bounds(tensor)
            size = end - start if tensor.size else 0
        self._alive.append(tensor)
        if size:
            self._owners.append((start, start + size, name))
            self._stale = True

    def add_once(self, tensor: Any, name: str) -> None:
        """Registers a tensor unless it is registered already."""
        if not any(known is tensor for known in self._alive):
            self.add(tensor, name)

    def _merge(self) -> None:
        self.regions = []
        for owner in sorted(self._owners):
            last = self.regions[-1] if self.regions else None
            if last is not None and owner[0] < last.end:
                merged = Region(last.start, max(last.end, owner[1]), [*last.owners, owner])
                self.regions[-1] = merged
            else:
                self.regions.append(Region(owner[0], owner[1], [owner]))
        self._starts = [region.start for region in self.regions]
        self._stale = False

    def find(self, addresses: Lanes, width: int, lanes: Lanes) -> list[tuple[int, Any]]:
        """Pairs (number of a region, the lanes that access it). Faults if a lane is outside of all
        regions, or misaligned."""
        if self._stale:
            self._merge()
        misaligned = (addresses & (width - 1)).any()
        if misaligned:
            lane = int(np.flatnonzero(addresses % width)[0])
            self._refuse(int(addresses[lane]), width, int(lanes[lane]), "misaligned")
        low, high = int(addresses.min()), int(addresses.max())
        number = bisect.bisect_right(self._starts, low) - 1
        if number >= 0 and high + width <= self.regions[number].end:
            return [(number, slice(None))]
        numbers = np.searchsorted(np.array(self._starts, np.int64), addresses, "right") - 1
        ends = np.array([*(region.end for region in self.regions), 0], np.int64)
        outside = (numbers < 0) | (addresses + width > ends[numbers])
        if outside.any():
            lane = int(np.flatnonzero(outside)[0])
            self._refuse(int(addresses[lane]), width, int(lanes[lane]), "out of bounds")
        return [(int(number), numbers == number) for number in np.unique(numbers)]

    def _refuse(self, address: int, width: int, lane: int, what: str) -> None:
        if not self.regions:
            raise Fault(f"thread {lane}: {width}-byte access, but no tensor is registered")
        distance = [max(r.start - address, address - r.end + 1) for r in self.regions]
        nearest = self.regions[int(np.argmin(distance))]
        name = nearest.name(address)
        start, end = next((s, e) for s, e, n in nearest.owners if n == name)
        raise Fault(
            f"{what}: thread {lane} touches {width} bytes at byte {address - start} of {name}, "
            f"which has {end - start} bytes"
        )


class Scratch:
    """Shared memory of a CTA, or local memory of its threads. It is undefined at first."""

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        padded = -(-size // 16) * 16
        self.data = np.full(padded, 0xCD, np.uint8)
        self.undefined = np.full(padded, 0xFF, np.uint8)
        self._data = {width: self.data.view(kind) for width, kind in WORDS.items()}
        self._undefined = {width: self.undefined.view(kind) for width, kind in WORDS.items()}

    def check(self, offsets: Lanes, width: int, lanes: Lanes, limit: int) -> None:
        """Faults unless each access is aligned to its width and within `limit` bytes."""
        for what, bad in (
            ("misaligned", (offsets & (width - 1)) != 0),
            ("out of bounds", (offsets < 0) | (offsets + width > limit)),
        ):
            if bad.any():
                lane = int(np.flatnonzero(bad)[0])
                raise Fault(
                    f"{what}: thread {int(lanes[lane])} touches {width} bytes at byte "
                    f"{int(offsets[lane])} of {self.name} memory, which has {limit} bytes"
                )

    def load(self, index: Lanes, width: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Words of `width` bytes and which of their bits are undefined."""
        return self._data[width][index], self._undefined[width][index]

    def store(self, index: Lanes, width: int, values: NDArray[Any], undefined: Any) -> None:
        self._data[width][index] = values
        self._undefined[width][index] = undefined
