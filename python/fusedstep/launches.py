"""Buckets, each with the backend that carries it out: what every user of a rule plans once and runs
again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import backends
from .plan import Member, make_buckets
from .watch import ParamLists, Watch


class Launches:
    """The work on some members. Whoever makes one sets `watch` when all tensors are in place."""

    watch: Watch

    def __init__(self, members: list[Member]) -> None:
        self.members = members
        self.buckets = make_buckets(members)
        self.written = [member.param for member in members]

    def prepare(self, backend: str | None, where: Callable[[Member], object]) -> None:
        """Chooses the backend of each bucket; `where` names a member for its refusal."""
        self.launchers = [
            backends.choose(backend, bucket.device, where(bucket.members[0]))
            for bucket in self.buckets
        ]
        for launcher, bucket in zip(self.launchers, self.buckets, strict=True):
            backends.warn_if_slow(launcher, bucket.device)
            launcher.prepare(bucket)

    def moves(self, lists: ParamLists, state: dict[Tensor, dict[str, Any]]) -> int:
        """What the watch finds; backends copy the tables anew that it may have written."""
        moves = self.watch.check(lists, state)
        if moves != 0:
            for bucket in self.buckets:
                bucket.table_changed = True
        return moves

    def run(
        self,
        rows: list[Tensor],
        inv_grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> None:
        """Launches every bucket, with its rows of scalars."""
        torch.autograd.graph.increment_version(self.written)
        for launcher, bucket, scalars in zip(self.launchers, self.buckets, rows, strict=True):
            if bucket.stages:
                bucket.copy_in()
            launcher.launch(bucket, scalars, inv_grad_scale, found_inf)
            if bucket.stages:
                bucket.copy_out()

    def scratch_bytes(self) -> int:
        """Memory that the launches use beside the tensors: scratch, and copies of strided
        tensors."""
        copies = sum(s.copy.nbytes for bucket in self.buckets for s in bucket.stages)
        return copies + sum(
            launcher.scratch_bytes(bucket)
            for launcher, bucket in zip(self.launchers, self.buckets, strict=True)
        )
