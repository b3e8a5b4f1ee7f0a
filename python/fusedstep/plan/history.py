"""Counters with a history: numbers of a parameter that each step makes from those of the step
before, such as NAdam's product of momentums.

They are 0-d states beside `step`, of its dtype and on its device. A step number then is a tuple:
the number, and what the states hold before the step. All members with equal ones share a row of
scalars, and their next numbers are computed once, on the host or on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import devices
from .counters import Step, TensorCounters, flat_tensor, memory_of, only_number

if TYPE_CHECKING:
    from .bucket import Member

# (group, coming step or steps) -> what the states hold after it: numbers, or tensors of many.
Next = Callable[[int, Step], tuple[Any, ...]]


def number_of(step: Step) -> Any:
    """The number of a step, without the history."""
    return step[0] if isinstance(step, tuple) else step


def part_of(step: Step, first: int, last: int) -> Step:
    """Some of many steps on a device."""
    if isinstance(step, tuple):
        return tuple(numbers[first:last] for numbers in step)
    return step[first:last]


class HistoryCounters(TensorCounters):
    """Counters of states that also hold the numbers `history`."""

    def __init__(
        self, history: tuple[str, ...], members: list[Member], waited_for: Iterable[int] = ()
    ) -> None:
        super().__init__(members, waited_for)
        self.keys = ("step", *history)
        self._groups = [member.group for member in members]
        states = [member.state for member in members]
        for state in states:
            step = state["step"]
            for key in history:
                state[key] = torch.as_tensor(state[key], dtype=step.dtype, device=step.device)
        # For each number a flat tensor beside each of the counters.
        self.histories = [
            [flat_tensor(states, key, positions) for positions in self.positions] for key in history
        ]
        self._memories = None
        if self._memory is not None:
            self._memories = [memory_of(flats[self.read[0]]) for flats in self.histories]
        self._on_device = {
            which: self.vector(self.positions[which], flat.device)
            for which, flat in enumerate(self.flats)
            if which not in self.read
        }

    def next_of_all(self) -> Step | None:
        """The coming step of all, or None if counters or histories differ."""
        step = super().next_of_all()
        if step is None:
            return None
        if self._memories is not None:
            numbers = [only_number(memory) for memory in self._memories]
        else:
            numbers = [_only_number_of(flats[self.read[0]]) for flats in self.histories]
        return None if None in numbers else (step, *numbers)

    def next_of_each(self) -> list[Step]:
        """The coming step of each parameter; of zeros if its counter is not read."""
        columns = [self._read_each(flats) for flats in self.histories]
        return list(zip(super().next_of_each(), *columns, strict=True))

    def vector(self, positions: list[int], device: torch.device) -> Callable[[], Step]:
        """A function that returns tensors on `device`: the coming steps of the parameters in
        `positions`, and their histories. It never waits."""
        counted = super().vector(positions, device)
        readers = [self._reader(flats, positions, device) for flats in self.histories]
        return lambda: (counted(), *(read() for read in readers))

    def advance(self, after: Next, found_inf: Tensor | None, present: bytes | None) -> None:
        """Writes what the states hold after the coming step, where a parameter takes part in it.
        `count` comes next, and changes the number of the step."""
        of_all = self.next_of_all()
        of_each = self.next_of_each() if self.read and of_all is None else []
        is_whole = found_inf is None and present is None
        for which, part in enumerate(self._taking_part(found_inf, present)):
            if which in self.read:
                numbers = self._next_on_host(which, after, of_all, of_each)
            else:
                numbers = self._next_on_device(which, after)
            for flats, number in zip(self.histories, numbers, strict=True):
                flat = flats[which]
                if isinstance(number, list):
                    number = devices.to_device(
                        torch.tensor(number, dtype=flat.dtype, device="cpu"), flat.device
                    )
                if not is_whole:
                    took_part = torch.as_tensor(part, device=flat.device) != 0
                    number = torch.where(took_part, number, flat)
                if isinstance(number, Tensor):
                    flat.copy_(number)
                else:
                    flat.fill_(number)

    def _next_on_host(
        self, which: int, after: Next, of_all: Step | None, of_each: list[Step]
    ) -> list[Any]:
        """For each number of the history: the next one of all these parameters, or a list."""
        positions = self.positions[which]
        groups = [self._groups[position] for position in positions]
        if of_all is not None and len({*groups}) == 1:
            return list(after(groups[0], of_all))
        steps = [of_all] * len(positions) if of_all is not None else [of_each[i] for i in positions]
        keys = list(zip(groups, steps, strict=True))
        found = {key: after(*key) for key in {*keys}}
        return [list(column) for column in zip(*map(found.__getitem__, keys), strict=True)]

    def _next_on_device(self, which: int, after: Next) -> list[Tensor]:
        """The same, as tensors. The number of calls depends on the number of groups only."""
        now = self._on_device[which]()
        parts: list[list[Tensor]] = []
        first = 0
        for group, run in groupby(self._groups[position] for position in self.positions[which]):
            last = first + len(list(run))
            made = after(group, part_of(now, first, last))
            like = number_of(now)[first:last]
            parts.append([own + torch.zeros_like(like) for own in made])
            first = last
        return [torch.cat(column) for column in zip(*parts, strict=True)]


def _only_number_of(flat: Tensor) -> float | None:
    low, high = [end.item() for end in torch.aminmax(flat)]
    return low if low == high else None
