"""The plan of an optimizer: all that its step can use again, and how it sees that it cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import steps
from ..launches import Launches
from ..plan import Bucket, Member, gradient_cells
from ..steps import IntSteps, TensorSteps
from ..watch import ParamLists, Watch, watch

if TYPE_CHECKING:
    from .base import FusedOptimizer


class Plan(Launches):
    """What a step can use again as long as nothing moved: buckets, counters, and the watch on
    both. `away` are the positions in `buckets` of those that are not on the host."""

    def __init__(self, optimizer: FusedOptimizer, members: list[Member]) -> None:
        super().__init__(members)
        self.backend = optimizer.backend
        self.choices = optimizer.choices()
        self.captured = False
        places = [k for k, bucket in enumerate(self.buckets) if _is_away(bucket)]
        self.devices = {self.buckets[k].device for k in places}
        self.away = places if optimizer.scalars_on_tensors else []
        counters = TensorSteps if optimizer.steps_are_tensors else IntSteps
        states = [member.state for member in members]
        hosted = set(range(len(self.buckets))).difference(self.away)
        waited_for = [position for k in hosted for position in self.buckets[k].positions]
        self.steps = counters(states, waited_for) if members else None
        self.groups = [frozenset(m.group for m in bucket.members) for bucket in self.buckets]
        self._vectors: dict[int, Callable[[], Tensor]] = {}
        self.counted_away = set()
        for k in self.away:
            assert self.steps is not None
            if any(map(self.steps.is_away, self.buckets[k].positions)):
                self.counted_away.add(k)
                self.coming_steps(k)  # what it needs on the device is there before a capture
        self.prepare(optimizer.backend, optimizer.where)
        self.watch = self._make_watch(optimizer)

    def _make_watch(self, optimizer: FusedOptimizer) -> Watch:
        lists = param_lists(optimizer)
        keys = {key for member in self.members for key in member.state_keys}
        keys |= {member.rms_key for member in self.members if member.rms_key}
        if optimizer.steps_are_tensors:
            keys.add("step")
        cells = gradient_cells(self.buckets, lists)
        return watch(lists, optimizer.state, tuple(sorted(keys)), cells)

    def coming_steps(self, k: int) -> Callable[[], Tensor]:
        """What gives the coming step's number of each member of a bucket, on the bucket's
        device."""
        if k not in self._vectors:
            assert self.steps is not None
            bucket = self.buckets[k]
            self._vectors[k] = self.steps.vector(bucket.positions, bucket.device)
        return self._vectors[k]


def param_lists(optimizer: torch.optim.Optimizer) -> ParamLists:
    lists = (group["params"] for group in optimizer.param_groups)
    return [params if type(params) is list else list(params) for params in lists]


def _is_away(bucket: Bucket) -> bool:
    return not steps.on_host(bucket.members[0].param)
