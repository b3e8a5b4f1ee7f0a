"""Which row of scalars each tensor of a bucket takes: one for each (group, step) that occurs."""

from __future__ import annotations

from itertools import compress

import torch


class Rows:
    """The rows of one bucket. `row_of` is replaced when it changes, never written: a backend that
    keeps a copy elsewhere sees from its identity that it has to copy it again.

    Arguments:
        groups: of each member, the parameter group it comes from.
        positions: of each member, its place in the plan.
    """

    def __init__(self, groups: list[int], positions: list[int]) -> None:
        self._groups = groups
        self._positions = positions
        self._names = sorted(set(groups))  # of the groups that occur
        index = {group: row for row, group in enumerate(self._names)}
        self._by_group = [index[group] for group in groups]
        self._by_member = list(range(len(groups)))
        # (group, step) of each row; none where only a device knows the steps.
        self.keys: list[tuple[int, float]] = []
        self._taken: list[int] = []
        self.row_of = torch.empty(0, dtype=torch.int64, device="cpu")

    def by_group(self, step: float) -> None:
        """All counters are equal, as at most steps: the rows stay, only their step changes."""
        self._take(self._by_group)
        self.keys = [(group, step) for group in self._names]

    def by_group_and_step(self, steps: list[float], present: list[bool]) -> None:
        """`steps` are those of the plan's members, by position. Who is not present takes any
        row."""
        own = [
            (group, steps[position])
            for group, position in zip(self._groups, self._positions, strict=True)
        ]
        here = [present[position] for position in self._positions]
        self.keys = sorted(set(compress(own, here))) or own[:1]
        index = {key: row for row, key in enumerate(self.keys)}
        self._take([index.get(key, 0) for key in own])

    def by_member(self) -> None:
        """A row for each member: only the device knows which counters are equal."""
        self._take(self._by_member)
        self.keys = []

    def _take(self, rows: list[int]) -> None:
        if rows is not self._taken and rows != self._taken:
            self.row_of = torch.tensor(rows, dtype=torch.int64, device="cpu")
        self._taken = rows
