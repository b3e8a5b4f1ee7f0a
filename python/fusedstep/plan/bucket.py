"""Groups the parameters into buckets, one launch each, and makes their tables of addresses.

Only this file and the watch know how tensors lie in memory. The tensors of a bucket share a rule, a
device and all dtypes. They may come from any group: groups and step counts differ only in the row
of scalars. A backend gets addresses and sizes, of tensors that it can walk flat.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..rules import RULES, Rule
from ..rules.layout import SLOTS
from . import shards
from .flat import FlatShard
from .layouts import Layout, plain_strides, same_order
from .rows import Rows
from .staging import StagedCopy, is_dense, real
from .storage import NO_SLOTS, Storage, storage_of


@dataclass(slots=True, eq=False)
class Member:
    """One parameter of a plan, with the states its rule needs, in the rule's order, and then their
    companions. Treat it as read-only: a frozen class would take three times as long to make."""

    param: Tensor
    state: dict[str, Any]
    group: int
    rule: str
    state_keys: tuple[str, ...]
    # Of the parameter, the gradient, and the states in the rule's order. The address of an absent
    # gradient is 0; its layout is the last one that was seen.
    layouts: tuple[Layout, ...]
    addresses: tuple[int, ...]
    rms_key: str | None = None  # the key of rms(p) among the states, if the optimizer shows it
    source: Tensor | None = None  # the tensor whose gradient is used, if it is not `param`
    shard: shards.Shard | None = None  # of a factored rule, if others hold parts of the parameter
    noise: tuple[int, ...] | None = None  # NOISE of `rules/layout.py`, if numbers are rounded by it
    is_new: bool = False  # whether its states were made for this plan

    @property
    def owner(self) -> Tensor:
        """The tensor whose gradient is used."""
        return self.param if self.source is None else self.source

    @property
    def is_present(self) -> bool:
        """Whether it has a gradient. If not, the step leaves it out."""
        return self.owner.grad is not None

    @property
    def kind(self) -> str:
        if not RULES[self.rule].factored:
            return "elementwise"
        return "matrix" if len(self.shape) >= 2 else "vector"

    @property
    def shape(self) -> torch.Size:
        """The shape in which a factored rule takes it: of a flat piece that of the whole."""
        if isinstance(self.shard, FlatShard):
            return self.shard.whole
        return self.layouts[0].shape

    def gradient(self) -> Tensor:
        grad = self.owner.grad
        assert grad is not None, "a member without a gradient takes no part"
        return real(shards.local(grad).resolve_conj())

    @property
    def mode(self) -> str | None:
        """How processes share its sums; None if they share none."""
        return None if self.shard is None else self.shard.mode

    def flat(self, slot: int) -> Tensor:
        """The parameter (slot 0) or a state as kernels see it: local and real."""
        return real(
            shards.local(self.param if slot == 0 else self.state[self.state_keys[slot - 2]])
        )


@dataclass
class Bucket:
    """The members of one launch. `csrc/plan.h` describes the layout of `table`."""

    rule: Rule
    kind: str
    device: torch.device
    dtypes: tuple[torch.dtype, ...]  # of all tensors: parameter, gradient, states, companions
    mode: str | None = None  # see `Member.mode`
    storage: Storage = NO_SLOTS
    # The elements here of all matrices that the optimizer was given, by device and dtype.
    given: Callable[[], Mapping[tuple[torch.device, torch.dtype], int]] = dict
    members: list[Member] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)  # of the members in the plan
    staged: list[StagedCopy] = field(default_factory=list)
    copies: dict[tuple[int, int], Tensor] = field(default_factory=dict)  # by member and slot
    rms: Tensor | None = None  # one number for each member
    table: Tensor = field(default_factory=lambda: torch.empty(0, device="cpu"))
    noise: Tensor | None = None  # a row of NOISE for each member, on the host
    rows: Rows = field(default_factory=lambda: Rows([], [], 0))
    # Whether `table` was written. A backend that copies it to a device sets this to False after the
    # copy. The tensor is never replaced, because the watch writes to its address.
    table_changed: bool = True

    @property
    def compute_dtype(self) -> torch.dtype:
        return torch.float64 if self.dtypes[0] == torch.float64 else torch.float32

    @property
    def number_dtype(self) -> torch.dtype:
        """The dtype of the parameters' numbers: with a master weight that is float32."""
        return torch.float32 if self.storage.companions[0] else self.members[0].param.dtype

    @property
    def elements(self) -> int:
        """The elements here of all matrices of this device and dtype that the optimizer was given,
        with gradients or without. A cut may depend on this, but not on who has a gradient: a run
        that is resumed has the bits of one that goes on."""
        return self.given().get((self.device, self.dtypes[0]), 0)

    def tensors(self, index: int) -> tuple[Tensor, ...]:
        """The tensors of one member, gradient included, in the order of the rule's slots."""
        member = self.members[index]
        states = [member.flat(2 + k) for k in range(len(member.state_keys))]
        slots = [member.flat(0), None, *states]
        slots = [self.copies.get((index, slot), tensor) for slot, tensor in enumerate(slots)]
        found = [self.gradient(index) if tensor is None else tensor for tensor in slots]
        if isinstance(member.shard, FlatShard) and member.shard.is_whole:
            flat = found[0].shape
            found = [own.view(member.shape) if own.shape == flat else own for own in found]
        return tuple(found)

    def gradient(self, index: int) -> Tensor:
        """The gradient of one member as kernels see it: its elements have no gaps."""
        copy = self.copies.get((index, 1))
        return self.members[index].gradient() if copy is None else copy

    def gradient_sizes(self) -> list[int]:
        """How many real numbers the gradient of each member has here."""
        found = [member.layouts[0] for member in self.members]
        return [2 * own.count if own.dtype.is_complex else own.count for own in found]

    def take_presence(self) -> None:
        """Turns off the copies of members without a gradient. The watch writes the cells of
        gradients that are not copied."""
        for own in self.staged:
            own.present = self.members[own.member].is_present
            if own.is_gradient:
                address = shards.address_of(own.copy) if own.present else 0
                self.table[own.member, own.slot] = address
                self.table_changed = True


class Kind(NamedTuple):
    """What all members with the same rule and the same layouts share."""

    bucket: Bucket
    cells: list[int]  # the bucket's table so far
    is_plain: bool  # whether all their tensors can be walked in place
    sizes: tuple[int, ...]  # the last cells of their rows


def make_buckets(members: list[Member]) -> list[Bucket]:
    """Groups the members and makes each bucket's table. Empty parameters are left out, unless they
    are the empty parts of others that share sums."""
    kinds: dict[tuple[Any, ...], Kind] = {}
    buckets: dict[tuple[Any, ...], tuple[Bucket, list[int]]] = {}
    for position, member in enumerate(members):
        layouts = member.layouts
        if layouts[0].count == 0 and member.shard is None:
            continue
        alike = member.rule, layouts, member.shard, member.state_keys, member.noise is None
        kind = kinds.get(alike)
        if kind is None:
            kind = kinds[alike] = _kind_of(buckets, member)
        bucket, cells, is_plain, sizes = kind
        if not is_plain:
            _stage_others(bucket, member)
        cells += member.addresses
        cells += sizes
        bucket.members.append(member)
        bucket.positions.append(position)
    for bucket, cells in buckets.values():
        groups = [member.group for member in bucket.members]
        bucket.rows = Rows(groups, bucket.positions, len(members))
        table = torch.tensor(cells, dtype=torch.int64, device="cpu")
        bucket.table = table.view(len(bucket.members), -1)
        if bucket.members[0].noise is not None:
            numbers = [member.noise for member in bucket.members]
            bucket.noise = torch.tensor(numbers, dtype=torch.int64, device="cpu")
        for (index, slot), copy in bucket.copies.items():
            bucket.table[index, slot] = copy.data_ptr()
        _collect_rms(bucket)
        bucket.take_presence()
    return [bucket for bucket, _ in buckets.values()]


def _kind_of(buckets: dict[tuple[Any, ...], tuple[Bucket, list[int]]], member: Member) -> Kind:
    """The kind of a member, and its bucket."""
    param, grad = member.layouts[:2]
    dtypes = tuple(layout.dtype.to_real() for layout in member.layouts)
    kind, is_noisy = member.kind, member.noise is not None
    small = [slot for slot, name in enumerate(SLOTS[kind]) if name in ("row", "col", "v")]
    storage = storage_of(member.state_keys, dtypes, is_noisy, small)
    key = (member.rule, kind, param.device, dtypes, storage, is_noisy, member.mode)
    if key not in buckets:
        rule = RULES[member.rule]
        buckets[key] = Bucket(rule, kind, param.device, dtypes, member.mode, storage), []
    is_plain = grad.strides == param.strides and all(layout.is_plain for layout in member.layouts)
    sizes = [2 * param.count if param.dtype.is_complex else param.count]
    if kind == "matrix":
        *batch, rows, cols = member.shape
        sizes = [math.prod(batch), rows, cols]
    if kind != "elementwise":
        sizes.insert(0, 0)  # the address of rms(p)
    return Kind(*buckets[key], is_plain, tuple(sizes))


def gradient_cells(buckets: Iterable[Bucket], param_lists: list[list[Tensor]]) -> list[int]:
    """For each parameter, the address of the table cell that holds its gradient's address. It is 0
    if the gradient is copied, since the copy does not move."""
    cells = {}
    for bucket in buckets:
        base, fields = bucket.table.data_ptr(), bucket.table.shape[1]
        for index, member in enumerate(bucket.members):
            if (index, 1) not in bucket.copies:
                cells[id(member.owner)] = base + 8 * (index * fields + 1)
    return [cells.get(id(param), 0) for params in param_lists for param in params]


def _stage_others(bucket: Bucket, member: Member) -> None:
    """Copies the tensors of the bucket's next member that cannot be walked in place.

    Elementwise rules walk memory in the parameter's order if it is dense. Factored rules need plain
    rows. States of another shape than the parameter are rows or columns in plain order.
    """
    param, states = member.flat(0), [member.flat(2 + k) for k in range(len(member.state_keys))]
    shape, order = param.shape, plain_strides(param.shape)
    if bucket.kind == "elementwise" and is_dense(param):
        order = param.stride()
    grad = member.layouts[1]
    # For each slot: its shape, its strides, the strides that it should have, whether it is lazy.
    slots: list[tuple[torch.Size, Any, Any, bool]] = [
        (shape, param.stride(), order, param.is_neg()),
        (shape, () if grad.is_lazy else grad.strides, order, grad.is_lazy),
    ]
    for state in states:
        want = order if state.shape == shape else plain_strides(state.shape)
        slots.append((state.shape, state.stride(), want, state.is_neg()))
    index = len(bucket.members)
    for slot, (size, strides, want, is_lazy) in enumerate(slots):
        if is_lazy or not same_order(size, strides, want):
            dtype, device = bucket.dtypes[slot], bucket.device
            copy = torch.empty_strided(size, want, dtype=dtype, device=device)
            bucket.copies[index, slot] = copy
            bucket.staged.append(StagedCopy(copy, _source(member, slot), index, slot))


def _source(member: Member, slot: int) -> Callable[[], Tensor]:
    return member.gradient if slot == 1 else lambda: member.flat(slot)


def _collect_rms(bucket: Bucket) -> None:
    """Makes the members' rms states views of one tensor, and puts their addresses in the table. The
    backend writes them."""
    keys = [member.rms_key for member in bucket.members]
    if not any(keys):
        return
    numbers = [0.0] * len(keys)
    found: dict[torch.device, dict[int, Tensor]] = {}  # some may be on the host
    for index, member in enumerate(bucket.members):
        value = member.state.get(member.rms_key, 0.0) if member.rms_key else 0.0
        if isinstance(value, Tensor):
            found.setdefault(value.device, {})[index] = value.reshape(())
        else:
            numbers[index] = float(value)
    bucket.rms = torch.tensor(numbers, dtype=bucket.compute_dtype, device=bucket.device)
    for values in found.values():
        indices = torch.tensor(list(values), device=bucket.device)
        bucket.rms[indices] = torch.stack(list(values.values())).to(bucket.rms)
    start, size, slot = bucket.rms.data_ptr(), bucket.rms.element_size(), len(bucket.dtypes)
    cells = []
    for index, (member, view) in enumerate(zip(bucket.members, bucket.rms.unbind(), strict=True)):
        if member.rms_key:
            member.state[member.rms_key] = view
        cells.append(start + size * index if member.rms_key else 0)
    bucket.table[:, slot] = torch.tensor(cells, dtype=torch.int64, device="cpu")
