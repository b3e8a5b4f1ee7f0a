"""Adds up the sums of sharded tensors over processes, between the stages of a factored step.

All tensors that share processes are packed into one message, so a step takes a fixed number of
collectives, whatever the number of tensors:

    round 0    sums along the rows, if columns are split
    round 1    sums down the columns, of row moments, and of p^2, if rows are split; sum p^2 and
               sum u^2 of tensors whose rows and columns are whole; sums along rows and down columns
               of flat pieces
    round 2    sum u^2, if columns are split, a cap may change u, or pieces are flat

Every process sends the same message at every step: it has room for every sharded parameter, with or
without a gradient. It also counts for each parameter the processes that have a gradient, so a
gradient that some processes lack is an error on all of them, and nobody waits for a message that
never comes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from . import devices, flat
from .shards import Processes, Shard, local

if TYPE_CHECKING:
    from .bucket import Member
    from .launcher import Launcher

ROUNDS = 3
ROLES = ("flat", "elements")  # of flat pieces


class ExchangeError(RuntimeError):
    """Processes cannot add up their sums. All of them raise it."""


class Place(Protocol):
    """Names a parameter: as a string with all that an error says, by `place` in all processes
    alike."""

    @property
    def place(self) -> str: ...


@dataclass(frozen=True, eq=False)
class Part:
    """What this process holds of one sharded parameter of a factored rule."""

    where: Place
    param: Tensor
    shard: Shard

    @property
    def matrices(self) -> tuple[int, int, int]:
        """The number of matrices here, their rows and their columns. Of a flat piece those of the
        whole."""
        is_flat = isinstance(self.shard, flat.FlatShard)
        return sizes_of(self.shard.whole if is_flat else local(self.param).shape)

    def slots(self, number: int, processes: Processes) -> list[tuple[str, int, int]]:
        """What is added up over `processes` in a round: the buffer, and where in the tensor's
        numbers there."""
        batch, rows, cols = self.matrices
        sums = batch * (2 * cols + 1) if len(self.shard.whole) > 1 else 0  # then sum p^2
        roles = {split.role for split in self.shard.splits if split.processes == processes}
        mode = self.shard.mode
        found = []
        if "flat" in roles and number == 1:
            found.append(("sums", 0, batch * (cols + rows) + 1))
        if number == 0 and "cols" in roles:
            found.append(("sums", sums, sums + 1 + batch * rows))
        if number == 1 and "rows" in roles:
            found.append(("sums", 0, sums + 1))
        elif number == 1 and roles & {"batch", "elements"}:
            found.append(("sums", sums, sums + 1))
            if mode == "pieces":
                found.append(("sum_u2", 0, 1))
        if number == 2:
            late = roles & {"cols", "batch", "elements", "flat"} and mode != "pieces"
            if late or ("rows" in roles and self.shard.is_capped):
                found.append(("sum_u2", 0, 1))
        return found

    def fingerprint(self) -> str:
        """What must be the same in all processes that exchange sums of this parameter."""
        splits = [f"{split.role} over {split.processes.size}" for split in self.shard.splits]
        whole = f"{tuple(self.shard.whole)}, {self.param.dtype}"  # device and piece may differ
        return f"{self.where.place} ({whole}), {', '.join(splits)}"


def sizes_of(shape: torch.Size) -> tuple[int, int, int]:
    """The number of matrices in a tensor, their rows and their columns."""
    if len(shape) < 2:
        return 1, 1, shape.numel()
    *batch, rows, cols = shape
    return torch.Size(batch).numel(), rows, cols


class Message(NamedTuple):
    """One collective: what is added up over some processes in one round. It starts with a count of
    gradients for each part, then come the parts' slots."""

    number: int  # of the round
    processes: Processes
    parts: list[int]  # the parts that take part
    holders: list[tuple[int, ...]]  # the ranks that hold something of each
    slots: list[tuple[int, str, int, int, int]]  # part, buffer, start, end, place in the message
    length: int

    def uneven(self, counts: Tensor) -> list[int]:
        """The parts for which some processes have a gradient and others have not. A flat piece
        without elements needs none."""
        return [
            index
            for index, count in enumerate(counts.tolist())
            if count != 0.0 and count != len(self.holders[index])
        ]


class ExchangeLayout:
    """The messages of a step. All processes agree on them once, when the first plan is made."""

    def __init__(self, name: str, parts: list[Part]) -> None:
        self.name = name
        self.parts = parts
        self.holders: dict[int, tuple[int, ...]] = {}  # of flat parts: ranks that have elements
        for processes in self._processes():
            self._agree(processes)
        self.messages = [
            message
            for number in range(ROUNDS)
            for processes in self._processes()
            if (message := self._message(number, processes)).slots
        ]

    def is_of(self, parts: list[Part]) -> bool:
        """Whether this is the layout for other `parts`."""
        return len(parts) == len(self.parts) and all(
            own.param is other.param
            and own.shard == other.shard
            and own.where.place == other.where.place
            and own.matrices == other.matrices
            for own, other in zip(self.parts, parts, strict=True)
        )

    def _processes(self) -> list[Processes]:
        found = {split.processes for part in self.parts for split in part.shard.splits}
        return sorted(found, key=lambda processes: processes.order)

    def _message(self, number: int, processes: Processes) -> Message:
        wanted = [
            (k, slots)
            for k, part in enumerate(self.parts)
            # What one process holds alone needs no message.
            if (k not in self.holders or len(self.holders[k]) > 1)
            and (slots := part.slots(number, processes))
        ]
        place, found = len(wanted), []
        for k, slots in wanted:
            for buffer, start, end in slots:
                found.append((k, buffer, start, end, place))
                place += end - start
        parts = [k for k, _ in wanted]
        holders = [self.holders.get(k, processes.ranks) for k in parts]
        return Message(number, processes, parts, holders, found, place)

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
        self._agree_on_runs(processes)

    def _agree_on_runs(self, processes: Processes) -> None:
        """Refuses flat pieces that overlap or leave gaps, and notes who holds some elements."""
        runs = {
            k: part.shard.run
            for k, part in enumerate(self.parts)
            if isinstance(part.shard, flat.FlatShard) and processes in part.shard.over(*ROLES)
        }
        if not runs:
            return
        answers = processes.gather(runs)
        for k in runs:
            of_ranks, where = [answer[k] for answer in answers], self.parts[k].where
            whole = self.parts[k].shard.whole
            if reason := flat.why_no_partition(of_ranks, processes.ranks, whole.numel()):
                said = ", ".join(
                    f"rank {rank}: {start} to {start + count}"
                    for rank, (start, count) in zip(processes.ranks, of_ranks, strict=True)
                )
                raise ExchangeError(
                    f"{self.name}: the flat pieces of {where} do not make up the whole shape "
                    f"{tuple(whole)}: {reason} ({said}). Correct the start and the sizes that "
                    "declare_shard was given."
                )
            ranked = zip(processes.ranks, of_ranks, strict=True)
            self.holders[k] = tuple(rank for rank, (_, count) in ranked if count)


class Exchange:
    """The messages of one plan, with the buffers that they come from."""

    def __init__(self, layout: ExchangeLayout, launchers: Iterable[Launcher] = ()) -> None:
        self.layout = layout
        place_of = {id(part.param): k for k, part in enumerate(layout.parts)}
        self._members: list[tuple[int, Member]] = []
        buffers: dict[int, dict[str, Tensor]] = {}
        for launcher in launchers:
            for index, member in enumerate(launcher.bucket.members):
                k = place_of[id(member.param)]
                start, end = launcher.starts[index : index + 2]
                buffers[k] = {
                    "sums": launcher.sums[start:end],
                    "sum_u2": launcher.sum_u2[index : index + 1],
                }
                self._members.append((k, member))
        self._packed = [_Packed(message, layout, buffers) for message in layout.messages]
        self._present: list[float] = []
        self._late: list[Callable[[], None]] = []  # checks of the last step, of counts on a GPU

    @property
    def is_checked_at_once(self) -> bool:
        """Whether the host can read the counts of gradients."""
        return all(devices.on_host(own.numbers) for own in self._packed)

    def start(self) -> None:
        """Begins a step: notes which parts have a gradient."""
        late, self._late = self._late, []
        for check in late:
            check()
        for own in self._packed:
            own.is_read = False
        self._present = [0.0] * len(self.layout.parts)
        for k, member in self._members:
            self._present[k] = float(member.is_present)

    def begin(self, number: int) -> Callable[[], None]:
        """Starts a round. Call the result to wait for it. What is split twice is added up over one
        group of processes, then over another."""
        messages = [own for own in self._packed if own.message.number == number]
        for own in messages[:-1]:
            self._send(own)()
        return self._send(messages[-1]) if messages else lambda: None

    def run(self, number: int) -> None:
        self.begin(number)()

    def _send(self, own: _Packed) -> Callable[[], None]:
        # Whoever knows that something is wrong tells the processes that do not.
        is_uneven = any(other.uneven() for other in self._packed if other.is_read)
        return own.send([math.nan] * len(self._present) if is_uneven else self._present)

    def join(self, error: BaseException | None = None) -> None:
        """Takes part in a step without any gradient here, or tells the others of an error."""
        self.start()
        if error is not None:
            self._present = [math.nan] * len(self._present)
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

    def _check_later(self, own: _Packed, error: str) -> Callable[[], None]:
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
        for k, holders in zip(message.parts, message.holders, strict=True):
            without = [
                rank
                for rank, (_, own) in zip(ranks, answers, strict=True)
                if k in own and rank in holders
            ]
            if 0 < len(without) < len(holders):
                raise ExchangeError(
                    f"{name}: {self.layout.parts[k].where} has no gradient on rank "
                    f"{', '.join(map(str, without))}, but has one on other ranks of {ranks}. Let "
                    "it take part in the loss on every rank, or set its .grad to zeros there."
                )
        raise ExchangeError(
            f"{name}: another group of processes refused this step, and {ranks} share parameters "
            "with it. Its error names the parameter."
        )


class _Packed:
    """One message, and the views of buffers that it is made of."""

    def __init__(
        self, message: Message, layout: ExchangeLayout, buffers: dict[int, dict[str, Tensor]]
    ) -> None:
        self.message = message
        device = message.processes.device_for(local(layout.parts[message.parts[0]].param).device)
        self.numbers = torch.zeros(
            message.length, dtype=devices.widest_float(device), device=device
        )
        self.counts = self.numbers[: len(message.parts)]
        self.is_read = False  # whether the counts came back, and the host can read them
        self.sources: list[Tensor] = []
        self.places: list[Tensor] = []
        for k, buffer, start, end, place in message.slots:
            if k in buffers:
                self.sources.append(buffers[k][buffer][start:end])
                self.places.append(self.numbers[place : place + end - start])

    def send(self, present: list[float]) -> Callable[[], None]:
        self.is_read = False
        self.numbers.zero_()
        own = torch.tensor([present[k] for k in self.message.parts], dtype=self.numbers.dtype)
        self.counts.copy_(own, non_blocking=True)
        if self.sources:
            torch._foreach_copy_(self.places, self.sources)
        wait = self.message.processes.add_up(self.numbers)

        def finish() -> None:
            wait()
            self.is_read = devices.on_host(self.numbers)
            if self.sources:
                torch._foreach_copy_(self.sources, self.places)

        return finish

    def uneven(self) -> list[int]:
        return self.message.uneven(self.counts)
