"""Which row of scalars each tensor of a bucket uses, and rows that the host knows. There is a row
for each (group, step)."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from itertools import chain, compress, repeat
from typing import Any

import torch
from torch import Tensor


class HostRows:
    """Rows of scalars that the host knows, as float64 numbers. Most launches need only the address:
    a tensor takes ten times as long to make."""

    __slots__ = ("numbers", "width")

    def __init__(self, rows: Iterable[Iterable[float]]) -> None:
        rows = list(rows)
        self.numbers = array("d", chain.from_iterable(rows))
        self.width = len(self.numbers) // len(rows)

    def address(self) -> int:
        return self.numbers.buffer_info()[0]

    def column(self, place: int) -> array[float]:
        return self.numbers[place :: self.width]

    def tensor(self) -> Tensor:
        return torch.frombuffer(self.numbers, dtype=torch.float64).view(-1, self.width)


class Rows:
    """The rows of one bucket. A change makes a new `scalar_row_of` and never writes the old one, so
    a backend that keeps a copy on a device compares identities to know when to copy again.

    Arguments:
        groups: the parameter group of each member.
        positions: the place of each member in the plan.
        n_members: the number of the plan's members.
    """

    def __init__(self, groups: list[int], positions: list[int], n_members: int) -> None:
        self._groups = groups
        self._positions = positions
        self._is_whole_plan = positions == list(range(n_members))
        self._names = sorted(set(groups))  # the groups that occur
        index = {group: row for row, group in enumerate(self._names)}
        self._by_group = [index[group] for group in groups]
        self._by_member = list(range(len(groups)))
        # (group, step) of each row; empty if only a device knows the steps.
        self.keys: list[tuple[int, float]] = []
        self._taken: list[int] = []
        self.scalar_row_of = torch.empty(0, dtype=torch.int64, device="cpu")

    def by_group(self, step: float) -> None:
        """A row for each group, if all counters are equal, as at most steps."""
        self._take(self._by_group)
        self.keys = [(group, step) for group in self._names]

    def by_group_and_step(self, steps: list[float], present: bytes) -> None:
        """A row for each (group, step). `steps` holds the steps of the plan's members, by position.
        A member that is not present gets any row."""
        own, here = steps, present
        if not self._is_whole_plan:
            own = [steps[position] for position in self._positions]
            here = bytes(map(present.__getitem__, self._positions))
        # Mostly there is one group. Numbers are hashed faster than pairs.
        keys: list[Any] = (
            own if len(self._names) == 1 else list(zip(self._groups, own, strict=True))
        )
        used = sorted({*compress(keys, here)}) or keys[:1]
        index = {key: row for row, key in enumerate(used)}
        self._take(list(map(index.get, keys, repeat(0))))
        self.keys = [(self._names[0], step) for step in used] if keys is own else used

    def by_member(self) -> None:
        """A row for each member, since only the device knows which counters are equal."""
        self._take(self._by_member)
        self.keys = []

    def _take(self, rows: list[int]) -> None:
        if rows is not self._taken and rows != self._taken:
            self.scalar_row_of = torch.frombuffer(array("q", rows), dtype=torch.int64)
        self._taken = rows
