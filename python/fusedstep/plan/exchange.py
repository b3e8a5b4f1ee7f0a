"""Adds up the sums of sharded tensors over processes, between the stages of a factored step.

All tensors that share processes are packed into one message, so a step takes a fixed number of
collectives, whatever the number of tensors:

    round 0    sums along the rows, if columns are split
    round 1    sums down the columns, of row moments, and of p^2, if rows are split; sum p^2 and
               sum u^2 of tensors whose rows and columns are whole
    round 2    sum u^2, if columns are split or a cap may change u

Every process sends the same message at every step: it has room for every sharded parameter, with or
without a gradient. It also counts for each parameter the processes that have a gradient, so a
gradient that some processes lack is an error on all of them, and nobody waits for a message that
never comes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from . import devices
from .packed import Buffers, Packed
from .shards import Processes, Shard, local

if TYPE_CHECKING:
    from .launcher import Launcher

ROUNDS = 3


class ExchangeError(RuntimeError):
    """Processes cannot add up their sums. All of them raise it."""


@dataclass(frozen=True, eq=False)
class Part:
    """What this process holds of one sharded parameter of a factored rule."""

    where: object  # names the parameter in an error
    param: Tensor
    shard: Shard

    @property
    def matrices(self) -> tuple[int, int, int]:
        """The number of matrices here, their rows and their columns."""
        return sizes_of(local(self.param))

    def slots(self, number: int, processes: Processes) -> list[tuple[str, int, int]]:
        """What is added up over `processes` in a round: the buffer, and where in the tensor's
        numbers there."""
        batch, rows, cols = self.matrices
        sums = batch * (2 * cols + 1) if self.param.dim() > 1 else 0  # then sum p^2
        roles = {split.role for split in self.shard.splits if split.processes == processes}
        mode = self.shard.mode
        found = []
        if number == 0 and "cols" in roles:
            found.append(("sums", sums, sums + 1 + batch * rows))
        if number == 1 and "rows" in roles:
            found.append(("sums", 0, sums + 1))
        elif number == 1 and roles & {"batch", "elements"}:
            found.append(("sums", sums, sums + 1))
            if mode == "pieces":
                found.append(("sum_u2", 0, 1))
        if number == 2:
            late = roles & {"cols", "batch", "elements"} and mode != "pieces"
            if late or ("rows" in roles and self.shard.is_capped):
                found.append(("sum_u2", 0, 1))
        return found

    def fingerprint(self) -> str:
        """What must be the same in all processes that exchange sums of this parameter."""
        splits = [f"{split.role} over {split.processes.size}" for split in self.shard.splits]
        return f"{self.where}, {', '.join(splits)}"


def sizes_of(own: Tensor) -> tuple[int, int, int]:
    """The number of matrices in a tensor, their rows and their columns."""
    if own.dim() < 2:
        return 1, 1, own.numel()
    *batch, rows, cols = own.shape
    return torch.Size(batch).numel(), rows, cols


class Message(NamedTuple):
    """One collective: what is added up over some processes in one round. It starts with a count of
    gradients for each part, then come the parts' slots."""

    number: int  # of the round
    processes: Processes
    parts: list[int]  # the parts that take part
    slots: list[tuple[int, str, int, int, int]]  # part, buffer, start, end, place in the message
    length: int

    def uneven(self, counts: Tensor) -> list[int]:
        """The parts for which some processes have a gradient and others have not."""
        fine = (0.0, float(self.processes.size))
        return [index for index, count in enumerate(counts.tolist()) if count not in fine]


class ExchangeLayout:
    """The messages of a step. All processes agree on them once, when the first plan is made."""

    def __init__(self, name: str, parts: list[Part]) -> None:
        self.name = name
        self.parts = parts
        self.messages = [
            message
            for number in range(ROUNDS)
            for processes in self._processes()
            if (message := self._message(number, processes)).slots
        ]
        for processes in self._processes():
            self._agree(processes)

    def is_of(self, parts: list[Part]) -> bool:
        """Whether this is the layout for other `parts`."""
        return len(parts) == len(self.parts) and all(
            own.param is other.param
            and own.shard == other.shard
            and str(own.where) == str(other.where)
            and own.matrices == other.matrices
            for own, other in zip(self.parts, parts, strict=True)
        )

    def _processes(self) -> list[Processes]:
        found = {split.processes for part in self.parts for split in part.shard.splits}
        return sorted(found, key=lambda processes: processes.order)

    def _message(self, number: int, processes: Processes) -> Message:
        wanted = [
            (k, slots) for k, p in enumerate(self.parts) if (slots := p.slots(number, processes))
        ]
        place, found = len(wanted), []
        for k, buffer, start, end in sorted(
            ((k, *slot) for k, slots in wanted for slot in slots), key=self._order
        ):
            found.append((k, buffer, start, end, place))
            place += end - start
        return Message(number, processes, [k for k, _ in wanted], found, place)

    def _order(self, slot: tuple[int, str, int, int]) -> tuple[Any, ...]:
        """Parts that are probably in one bucket follow each other, so that few copies make up a
        message. The order is the same in all processes."""
        k, buffer, start, _ = slot
        part = self.parts[k]
        is_vector = len(part.shard.whole) < 2
        return buffer, is_vector, part.shard.mode, str(part.param.dtype), k, start

    def _agree(self, processes: Processes) -> None:
        """Refuses parameters in another order or of other shapes: sums would be added to those of
        other tensors, or processes would wait forever."""
        own = [p.fingerprint() for p in self.parts if processes in p.shard.over(*p.shard.roles)]
        digests = processes.gather(hashlib.sha256("\n".join(own).encode()).hexdigest())
        if len({*digests}) > 1:
            odd = next(k for k, digest in enumerate(digests) if digest != digests[0])
            raise ExchangeError(
                f"{self.name}: ranks {processes.ranks[0]} and {processes.ranks[odd]} have other "
                "sharded parameters, or have them in another order or in other groups. Give every "
                f"process the same groups; here they start with {own[0]}."
            )


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
        self._late: list[Callable[[], None]] = []  # checks of the last step, of counts on a GPU

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
        for check in late:
            check()
        for own in self._packed:
            own.is_read = False

    def begin(self, number: int) -> Callable[[], None]:
        """Starts a round. Call the result to wait for it. What is split twice is added up over one
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
            self.run(2)

    def check_presence(self, error: str = "") -> None:
        """Refuses a gradient that only some of a parameter's processes have. Counts on a GPU are
        checked at the next step, because the host must not wait for them."""
        for own in self._packed:
            if own.message.number < 2 and own.is_read:
                self._check(own.message, own.uneven(), self._present, error)
            elif own.message.number < 2:
                self._late.append(self._check_later(own, error))

    def _check_later(self, own: Packed, error: str) -> Callable[[], None]:
        counts, present = own.counts.to("cpu", non_blocking=True), self._present
        event = torch.get_device_module(own.counts.device).Event()
        event.record()

        def check() -> None:
            event.synchronize()
            self._check(own.message, own.message.uneven(counts), present, error)

        return check

    def _check(self, message: Message, uneven: list[int], present: list[float], error: str) -> None:
        if not uneven:
            return
        lacking = [k for k in message.parts if present[k] == 0.0]
        answers = message.processes.gather((error, lacking))
        if error:
            return  # the others are told; here the error itself is raised
        name, ranks = self.layout.name, message.processes.ranks
        for rank, (said, _) in zip(ranks, answers, strict=True):
            if said:
                raise ExchangeError(
                    f"{name}: rank {rank} refused this step, so the others must not take it "
                    f"either. Its error: {said}"
                )
        for k in message.parts:
            without = [rank for rank, (_, own) in zip(ranks, answers, strict=True) if k in own]
            if 0 < len(without) < len(ranks):
                raise ExchangeError(
                    f"{name}: {self.layout.parts[k].where} has no gradient on rank "
                    f"{', '.join(map(str, without))}, but has one on other ranks of {ranks}. Let "
                    "it take part in the loss on every rank, or set its .grad to zeros there."
                )
        raise ExchangeError(
            f"{name}: another group of processes refused this step, and {ranks} share parameters "
            "with it. Its error names the parameter."
        )
