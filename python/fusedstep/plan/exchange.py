"""Adds up the sums of sharded tensors over processes, between the stages of a factored step.

Each message also counts, for each parameter, the processes that have a gradient. So a gradient that
some processes lack is an error on all of them, and nobody waits for a message that never comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch

from . import devices
from .exchange_layout import ExchangeError, ExchangeLayout, Message
from .packed import Buffers, Packed
from .shards import local

if TYPE_CHECKING:
    from .launcher import Launcher


class Exchange:
    """The messages of one plan, with the buffers that they come from."""

    def __init__(self, layout: ExchangeLayout, launchers: Iterable[Launcher] = ()) -> None:
        self.layout = layout
        place_of = {id(part.param): k for k, part in enumerate(layout.parts)}
        self._positions: dict[int, int] = {}  # of the parts, among the members of the plan
        buffers: dict[int, Buffers] = {}
        for launcher in launchers:
            bucket = launcher.bucket
            tensors = {"sums": launcher.sums, "sum_u2": launcher.sum_u2}
            for index, member in enumerate(bucket.members):
                k = place_of[id(member.param)]
                buffers[k] = Buffers(tensors, {"sums": launcher.starts[index], "sum_u2": index})
                self._positions[k] = bucket.positions[index]
        self._packed = [Packed(own, self._device_of(own), buffers) for own in layout.messages]
        self.take_presence(b"")
        self._has_failed = False
        self._late: list[Callable[[str], str]] = []  # checks of the last step, of counts on a GPU

    @property
    def is_checked_at_once(self) -> bool:
        """Whether the host can read the counts of gradients."""
        return all(devices.on_host(own.numbers) for own in self._packed)

    def _device_of(self, message: Message) -> torch.device:
        own = local(self.layout.parts[message.parts[0]].param).device
        return message.processes.device_for(own)

    def take_presence(self, present: bytes) -> None:
        """Notes which parts have a gradient. `present` tells it for each member of the plan."""
        self._present = [0.0] * len(self.layout.parts)
        for k, position in self._positions.items():
            self._present[k] = float(position < len(present) and present[position])
        for own in self._packed:
            own.take_presence(self._present)

    def start(self) -> None:
        """Begins a step."""
        late, self._late = self._late, []
        refusal = ""
        for check in late:
            refusal = check(refusal)
        self._raise(refusal)
        for own in self._packed:
            own.is_read = False

    def begin(self, number: int) -> Callable[[], None]:
        """Starts a turn. Call the result to wait for it. What is split twice is added up over one
        group of processes, then over another."""
        messages = [own for own in self._packed if own.message.number == number]
        for own in messages[:-1]:
            self._send(own)()
        return self._send(messages[-1]) if messages else lambda: None

    def run(self, number: int) -> None:
        self.begin(number)()

    def _send(self, own: Packed) -> Callable[[], None]:
        # Whoever knows that something is wrong tells the processes that do not.
        is_uneven = any(other.uneven() for other in self._packed if other.is_read)
        return own.send(is_uneven or self._has_failed)

    def join(self, error: BaseException | None = None) -> None:
        """Takes part in a step without any gradient here, or tells the others of an error."""
        self.start()
        self._has_failed = error is not None
        self.run(0)
        self.run(1)
        self.check_presence("" if error is None else f"{type(error).__name__}: {error}")
        if error is None or not self.is_checked_at_once:
            self.end()

    def end(self) -> None:
        """The last turn. A process that shares only these sums with those that refused the step
        learns it here."""
        self.run(2)
        self._raise(self._refusal(2, 2))

    def check_presence(self, error: str = "") -> None:
        """Refuses a gradient that only some of a parameter's processes have. Counts on a GPU are
        checked at the next step, because the host must not wait for them."""
        refusal = self._refusal(0, 1, error)
        if refusal:
            self.run(2)  # others may wait for it
            refusal = self._refusal(2, 2, error, refusal)
        if not error:  # here the error itself is raised
            self._raise(refusal)
        checks = [self._later(own) for own in self._packed if own.message.number < 2]
        self._late += [check for check in checks if check is not None]

    def _raise(self, refusal: str) -> None:
        if refusal:
            raise ExchangeError(f"{self.layout.name}: {refusal}")

    def _refusal(self, first: int, last: int, error: str = "", known: str = "") -> str:
        """Why the step is refused, by the counts of some turns; empty if it is not. Everyone who
        sees uneven counts asks the processes of that message, before anyone raises."""
        for own in self._packed:
            if first <= own.message.number <= last and own.is_read and own.uneven():
                known = self._ask(own.message, self._present, error, known)
        return known

    def _later(self, own: Packed) -> Callable[[str], str] | None:
        """A check of counts on a GPU, which gets what is known and returns what it finds."""
        if own.is_read:
            return None
        counts, present = own.counts.to("cpu", non_blocking=True), self._present
        event = torch.get_device_module(own.counts.device).Event()
        event.record()

        def check(known: str) -> str:
            event.synchronize()
            is_uneven = own.message.uneven(counts)
            return self._ask(own.message, present, "", known) if is_uneven else known

        return check

    def _ask(self, message: Message, present: list[float], error: str, known: str) -> str:
        """Asks the processes of a message what is wrong. `known` is what this one knows already,
        perhaps from processes that are not among them."""
        lacking = [k for k in message.parts if present[k] == 0.0]
        answers = message.processes.gather((error, lacking, known))
        ranks = message.processes.ranks
        for rank, (said, *_) in zip(ranks, answers, strict=True):
            if said:
                return known or (
                    f"rank {rank} refused this step, so the others must not take it either. Its "
                    f"error: {said}"
                )
        for k, holders in zip(message.parts, message.holders, strict=True):
            without = [
                rank
                for rank, (_, own, _) in zip(ranks, answers, strict=True)
                if k in own and rank in holders
            ]
            if 0 < len(without) < len(holders):
                return known or (
                    f"{self.layout.parts[k].where} has no gradient on rank "
                    f"{', '.join(map(str, without))}, but has one on other ranks of {ranks}. Let "
                    "it take part in the loss on every rank, or set its .grad to zeros there."
                )
        return known or next(
            (there for *_, there in answers if there),
            f"another group of processes refused this step, and {ranks} share parameters with it. "
            "Its error names the parameter.",
        )
