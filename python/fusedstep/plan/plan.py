"""The plan: buckets and their launchers, made once and used every step until a tensor moves."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain, compress
from typing import Any

import torch
from torch import Tensor

from . import devices, shards
from .bucket import Bucket, Member, gradient_cells, make_buckets
from .counters import IntCounters, Step, TensorCounters
from .exchange import Exchange
from .exchange_layout import ExchangeLayout
from .history import HistoryCounters, Next
from .launcher import Backend, Launcher, StepInputs
from .moments import Moments
from .rows import HostRows
from .versions import increment_of
from .watch import CAME_OR_WENT, ParamLists, watch

Counters = TensorCounters | IntCounters
MakesCounters = Callable[[list[Member], Iterable[int]], Counters]


@dataclass(frozen=True)
class Owner:
    """What an optimizer or accumulator gives the plan that it makes.

    Attributes:
        name: the first word of its errors.
        choose: gives the backend for a device. Its second argument names a tensor for the error.
        where: gives a member's name for an error.
        counters: makes the step counters of the members; None if nothing is counted.
        scalars_on_device: whether rows of scalars can be computed on a device.
        exchange: how processes add up the sums of sharded parameters; None if there are none.
    """

    name: str
    choose: Callable[[torch.device, object], Backend]
    where: Callable[[Member], object]
    counters: MakesCounters | None = None
    scalars_on_device: bool = False
    exchange: ExchangeLayout | None = None


class Plan:
    """What a step can use again until a tensor moves: buckets, launchers, counters, a watch.

    A member without a gradient stays in the plan, and the step leaves it out, as for the experts
    that a batch does not use. `present` tells for each member, by position, whether it takes part;
    `present_members` are those that do.

    `on_device` holds the indices of the buckets whose scalars can be computed on a device,
    `counted_on_device` of those whose counters are there too.
    """

    captured = False  # whether a CUDA graph reads this plan's memory

    def __init__(
        self,
        owner: Owner,
        members: list[Member],
        lists: ParamLists,
        state: dict[Tensor, dict[str, Any]],
    ) -> None:
        # The owner holds the plan, so a reference back to it would keep it from being freed.
        self.members = members
        self.buckets = make_buckets(members)
        given = cache(lambda: _elements_of(lists))
        for bucket in self.buckets:
            bucket.given = given
        on_devices = [k for k, bucket in enumerate(self.buckets) if not _is_on_host(bucket)]
        self.devices = {self.buckets[k].device for k in on_devices}
        self.on_device = on_devices if owner.scalars_on_device else []
        self.groups = [frozenset(m.group for m in bucket.members) for bucket in self.buckets]
        self.counters: Counters | None = None
        self.counted_on_device: set[int] = set()
        self._coming: dict[int, Callable[[], Step]] = {}
        if owner.counters is not None and members:
            self._take_counters(owner.counters)
        self.launchers = [
            owner.choose(bucket.device, owner.where(bucket.members[0])).prepare(bucket)
            for bucket in self.buckets
        ]
        self.exchange: Exchange | None = None
        if owner.exchange is not None:
            sharded = [own for own in self.launchers if own.bucket.mode is not None]
            self.exchange = Exchange(owner.exchange, sharded)
            self._moments = Moments(sharded)
        keys = {key for member in members for key in member.state_keys}
        keys |= {member.rms_key for member in members if member.rms_key}
        if self.counters is not None:
            keys |= {*self.counters.keys}
        cells = gradient_cells(self.buckets, lists)
        absent = {id(m.owner): m.layouts[1] for m in members if not m.addresses[1]}
        earlier = [absent.get(id(param)) for params in lists for param in params] if absent else []
        self.watch = watch(lists, state, tuple(sorted(keys)), cells, earlier)
        self._params = [member.param for member in members]
        # A DTensor and its local tensor each have a version. Autograd may have saved either.
        self._locals = {
            k: shards.local(own)
            for k, own in enumerate(self._params)
            if type(own) not in shards.PLAIN and shards.is_dtensor(own)
        }
        self._increment_versions = increment_of(self._params)
        places = {id(param): k for k, param in enumerate(chain.from_iterable(lists))}
        self._places = [places[id(member.owner)] for member in members]  # among the watch's
        self._take_presence()

    def _take_counters(self, make: MakesCounters) -> None:
        hosted = set(range(len(self.buckets))).difference(self.on_device)
        waited_for = [position for k in hosted for position in self.buckets[k].positions]
        self.counters = make(self.members, waited_for)
        for k in self.on_device:
            if any(map(self.counters.is_on_device, self.buckets[k].positions)):
                self.counted_on_device.add(k)
                self.coming_steps(k)  # uploads its index before any capture

    def coming_steps(self, k: int) -> Callable[[], Step]:
        """A function that returns the number of the coming step of each member of bucket `k`, on
        the bucket's device, and their histories if they have one."""
        if k not in self._coming:
            assert self.counters is not None
            bucket = self.buckets[k]
            self._coming[k] = self.counters.vector(bucket.positions, bucket.device)
        return self._coming[k]

    def holds(self, lists: ParamLists, state: dict[Tensor, dict[str, Any]]) -> bool:
        """Whether the plan can be used for the coming step. It follows gradients that moved, came
        or went, unless a graph captured it: the graph keeps the old addresses."""
        seen = self.watch.check(lists, state)
        if seen == 0:
            return True
        for bucket in self.buckets:  # cells of the tables may have been written
            bucket.table_changed = True
        if seen < 0 or self.captured:
            return False
        if seen & CAME_OR_WENT:
            if any(map(devices.is_capturing, self.devices)):
                return False  # the graph would use the members that the warm-up had
            self._take_presence()
            for bucket in self.buckets:
                bucket.take_presence()
        return True

    def _take_presence(self) -> None:
        seen = self.watch.present()
        if self._places != list(range(len(seen))):
            seen = bytes(map(seen.__getitem__, self._places))
        self.present = seen
        self.all_present = 0 not in self.present
        self.present_members = list(compress(self.members, self.present))
        self._written = list(compress(self._params, self.present))
        self._written += [own for k, own in self._locals.items() if self.present[k]]
        if self.exchange is not None:
            self.exchange.take_presence(self.present)

    def count(self, found_inf: Tensor | None, after: Next) -> None:
        """Counts a step for the members that took part. `after` gives the next numbers of their
        histories."""
        if self.counters is not None:
            present = None if self.all_present else self.present
            if isinstance(self.counters, HistoryCounters):
                self.counters.advance(after, found_inf, present)
            self.counters.count(found_inf, present)

    def run(
        self,
        rows: Sequence[HostRows | Tensor],
        inv_grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
        capturing: bool = False,
    ) -> None:
        """Runs a step of every bucket. `rows` holds each bucket's rows of scalars. `capturing`
        tells whether a graph captures the step."""
        _refuse_faking()
        self._increment_versions(self._written)
        inputs = [StepInputs(own, inv_grad_scale, found_inf, capturing) for own in rows]
        staged = [own for bucket in self.buckets for own in bucket.staged]
        for own in staged:
            own.copy_in()
        work = list(zip(self.launchers, inputs, strict=True))
        if self.exchange is None:
            for launcher, its_inputs in work:
                launcher.launch(its_inputs)
        else:
            with self._moments.restored_after_errors():
                _run_in_stages(work, self.exchange)
        for own in staged:
            own.copy_out()

    def copy_gradients_in(self) -> None:
        """Makes the copies of gradients that cannot be walked in place, to read them before the
        step."""
        _refuse_faking()
        for bucket in self.buckets:
            for own in bucket.staged:
                if own.is_gradient:
                    own.copy_in()

    def scratch_bytes(self) -> int:
        """Extra memory: scratch, and copies of strided tensors."""
        copies = sum(own.copy.nbytes for bucket in self.buckets for own in bucket.staged)
        return copies + sum(launcher.scratch_bytes() for launcher in self.launchers)


def _refuse_faking() -> None:
    if devices.is_faking():
        raise RuntimeError(
            "FakeTensorMode is active, and the tensors are real: a step would change them. "
            "Leave the mode for the step"
        )


def _elements_of(lists: ParamLists) -> Counter[tuple[torch.device, torch.dtype]]:
    """The elements here of all matrices, by device and dtype."""
    found: Counter[tuple[torch.device, torch.dtype]] = Counter()
    for params in lists:
        for param in params:
            if param.dim() > 1:
                own = shards.local(param)
                found[own.device, own.dtype] += own.numel()
    return found


def _is_on_host(bucket: Bucket) -> bool:
    return devices.on_host(bucket.members[0].param)


def _run_in_stages(work: list[tuple[Launcher, StepInputs]], exchange: Exchange) -> None:
    """Steps of buckets of which some are sharded. The others run while sums are under way."""
    of_mode: dict[str | None, list[tuple[Launcher, StepInputs]]] = {}
    for launcher, inputs in work:
        of_mode.setdefault(launcher.bucket.mode, []).append((launcher, inputs))
    modes = (None, "pieces", "rows", "cols", "flat")
    whole, pieces, rows, cols, flat = (of_mode.get(mode, []) for mode in modes)
    exchange.start()
    for launcher, inputs in cols:
        launcher.sum_rows(inputs)
    exchange.run(0)
    for launcher, inputs in cols + rows + flat + pieces:
        launcher.read1(inputs)
    for launcher, inputs in pieces:  # their rows and columns are whole
        launcher.finish(inputs)
    wait = exchange.begin(1)
    if exchange.is_checked_at_once:  # before anything has changed
        wait()
        exchange.check_presence()
    for launcher, inputs in whole:
        launcher.launch(inputs)
    if not exchange.is_checked_at_once:
        wait()
        exchange.check_presence()
    for launcher, inputs in cols + rows + flat:
        launcher.finish(inputs)
    exchange.end()
    for launcher, inputs in cols + rows + flat + pieces:
        launcher.update(inputs)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pauses Python's garbage collector. While a large plan is made, it would scan all objects many
    times and find nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
