"""What processes that share tensors send each other in a step. All of them agree on it once.

All tensors that share processes are packed into one message, so a step takes a fixed number of
collectives, whatever the number of tensors:

    turn 0    sums along the rows, if columns are split
    turn 1    sums down the columns, of row moments, and of p^2, if rows are split; sum p^2 and
              sum u^2 of tensors whose rows and columns are whole; sums along rows and down columns
              of flat pieces
    turn 2    sum u^2, if columns are split, a cap may change u, or pieces are flat

Every process sends the same messages at every step: they have room for every sharded parameter,
with or without a gradient.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from . import flat
from .shards import Processes, Shard, local

TURNS = 3
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
        """What is added up over `processes` in a turn: the buffer, and where in the tensor's
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
    """One collective: what is added up over some processes in one turn. It starts with a count of
    gradients for each part, then come the parts' slots."""

    number: int  # of the turn
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
            for number in range(TURNS)
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
            # A flat piece that is all of its parameter needs no message.
            if len(self.holders.get(k, (0, 1))) > 1 and (slots := part.slots(number, processes))
        ]
        place, found = len(wanted), []
        for k, buffer, start, end in sorted(
            ((k, *slot) for k, slots in wanted for slot in slots), key=self._order
        ):
            found.append((k, buffer, start, end, place))
            place += end - start
        parts = [k for k, _ in wanted]
        holders = [self.holders.get(k, processes.ranks) for k in parts]
        return Message(number, processes, parts, holders, found, place)

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
