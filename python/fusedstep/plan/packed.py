"""One message between processes: where its numbers come from, and where the sums go."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from . import devices
from .copies import Copies, joined

if TYPE_CHECKING:
    from .exchange import Message


class Buffers(NamedTuple):
    """What a launcher keeps of one part, in tensors that it has for all of its bucket."""

    tensors: dict[str, Tensor]
    starts: dict[str, int]


class Packed:
    """A message of one plan. What lies one after another here and there is copied at once."""

    def __init__(self, message: Message, device: torch.device, buffers: dict[int, Buffers]) -> None:
        self.message = message
        self.numbers = torch.zeros(
            message.length, dtype=devices.widest_float(device), device=device
        )
        self.counts = self.numbers[: len(message.parts)]
        self.is_read = False  # whether the counts came back, and the host can read them
        self._even: Tensor | None = None  # counts of an earlier step that were even
        self._present = torch.empty_like(self.counts)
        self.copies = self._copies_of(buffers)

    def _copies_of(self, buffers: dict[int, Buffers]) -> Copies:
        runs: dict[int, tuple[Tensor, list[tuple[int, int, int]]]] = {}
        for k, buffer, start, end, place in self.message.slots:
            if k in buffers:
                tensor, first = buffers[k].tensors[buffer], buffers[k].starts[buffer]
                run = (first + start, first + end, place)
                runs.setdefault(id(tensor), (tensor, []))[1].append(run)
        pairs = [
            (tensor[start:end], self.numbers[place : place + end - start])
            for tensor, own in runs.values()
            for start, end, place in joined(own)
        ]
        return Copies([source for source, _ in pairs], [place for _, place in pairs])

    def take_presence(self, present: list[float]) -> None:
        """Notes what this process counts for each part from now on."""
        own = [present[k] for k in self.message.parts]
        self._present = torch.tensor(own, dtype=self.numbers.dtype).to(self.numbers.device)

    def send(self, is_wrong: bool) -> Callable[[], None]:
        """Starts to add up. Call the result to wait. If something is wrong here, no count will be a
        number."""
        self.is_read = False
        self.numbers.zero_()
        if is_wrong:
            self.counts.fill_(torch.nan)
        else:
            self.counts.copy_(self._present, non_blocking=True)
        self.copies.there()
        wait = self.message.processes.add_up(self.numbers)

        def finish() -> None:
            wait()
            self.is_read = devices.on_host(self.numbers)
            self.copies.back()

        return finish

    def uneven(self) -> list[int]:
        """The parts for which some processes have a gradient and others have not."""
        if self._even is not None and torch.equal(self.counts, self._even):
            return []
        found = self.message.uneven(self.counts)
        if not found:
            self._even = self.counts.clone()
        return found
