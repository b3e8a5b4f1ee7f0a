"""Parameters of all groups -> buckets of what one launch holds uniform: addresses, sizes, scalar
rows.

Beside the watch, this is the one place that knows how tensors lie in memory. A bucket's tensors
share a rule, a device and all dtypes, whatever group they come from; what differs between groups
and step counts is a row of scalars. A backend gets addresses and sizes, and never a tensor that it
could not walk flat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..rules import RULES, Rule
from .rows import Rows
from .staging import GradientLayout, Stage, is_dense, plain_strides, real, same_order


@dataclass(frozen=True)
class Member:
    """One parameter of a plan, with the states its rule needs, in the rule's order."""

    param: Tensor
    state: dict[str, Any]
    group: int
    rule: str
    state_keys: tuple[str, ...]
    gradient_layout: GradientLayout
    rms_key: str | None = None  # where rms(p) is kept, for those who show it
    source: Tensor | None = None  # whose gradient is taken, if not the parameter's own

    @property
    def owner(self) -> Tensor:
        """Whose gradient is taken."""
        return self.param if self.source is None else self.source

    @property
    def is_present(self) -> bool:
        """Whether it has a gradient, and so takes part in the step."""
        return self.owner.grad is not None

    @property
    def kind(self) -> str:
        if not RULES[self.rule].factored:
            return "elementwise"
        return "matrix" if self.param.dim() >= 2 else "vector"

    def gradient(self) -> Tensor:
        grad = self.owner.grad
        assert grad is not None, "a member that is not present takes no part"
        return real(grad.resolve_conj())


@dataclass
class Bucket:
    """What one launch holds: see `csrc/plan.h` for the layout of `table`."""

    rule: Rule
    kind: str
    device: torch.device
    dtypes: tuple[torch.dtype, ...]
    members: list[Member] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)  # of the members in the plan
    slots: list[list[Tensor | None]] = field(default_factory=list)  # None: the gradient itself
    stages: list[Stage] = field(default_factory=list)
    rms: Tensor | None = None  # one number for each member
    table: Tensor = field(default_factory=lambda: torch.empty(0, device="cpu"))
    rows: Rows = field(default_factory=lambda: Rows([], []))
    # Whether `table` was written: a backend that keeps a copy elsewhere sets it False once it has
    # copied. The tensor itself is never replaced, for the watch knows its address.
    table_changed: bool = True

    @property
    def compute_dtype(self) -> torch.dtype:
        return torch.float64 if self.dtypes[0] == torch.float64 else torch.float32

    def tensors(self, index: int) -> tuple[Tensor, ...]:
        """The tensors of one member, as its rule takes them, gradient included."""
        member = self.members[index]
        return tuple(member.gradient() if slot is None else slot for slot in self.slots[index])

    def take_presence(self) -> None:
        """Leaves out the copies of members without a gradient. A gradient that is not copied has
        its cell from the watch."""
        for stage in self.stages:
            stage.present = self.members[stage.member].is_present
            if stage.is_gradient:
                address = stage.copy.data_ptr() if stage.present else 0
                self.table[stage.member, stage.slot] = address
                self.table_changed = True


def make_buckets(members: list[Member]) -> list[Bucket]:
    """Groups the members and lays out each bucket's table. Empty parameters need no work."""
    buckets: dict[tuple[Any, ...], Bucket] = {}
    for position, member in enumerate(members):
        if member.param.numel() == 0:
            continue
        own = [real(member.param), *(real(member.state[key]) for key in member.state_keys)]
        grad_dtype = member.gradient_layout.dtype.to_real()
        dtypes = (own[0].dtype, grad_dtype, *(t.dtype for t in own[1:]))
        key = (member.rule, member.kind, member.param.device, dtypes)
        bucket = buckets.get(key)
        if bucket is None:
            rule = RULES[member.rule]
            bucket = buckets[key] = Bucket(rule, member.kind, member.param.device, dtypes)
        bucket.slots.append(_flat_slots(bucket, member, own))
        bucket.members.append(member)
        bucket.positions.append(position)
    for bucket in buckets.values():
        _collect_rms(bucket)
        bucket.rows = Rows([member.group for member in bucket.members], bucket.positions)
        rows = [_table_row(bucket, index) for index in range(len(bucket.members))]
        bucket.table = torch.tensor(rows, dtype=torch.int64, device="cpu")
        bucket.take_presence()
    return list(buckets.values())


def gradient_cells(buckets: Iterable[Bucket], param_lists: list[list[Tensor]]) -> list[int]:
    """Of each parameter, the address of the table cell that holds its gradient's address, or 0. A
    copied gradient has none: its copy stays where it is."""
    cells = {}
    for bucket in buckets:
        base, fields = bucket.table.data_ptr(), bucket.table.shape[1]
        for index, member in enumerate(bucket.members):
            if bucket.slots[index][1] is None:
                cells[id(member.owner)] = base + 8 * (index * fields + 1)
    return [cells.get(id(param), 0) for params in param_lists for param in params]


def _flat_slots(bucket: Bucket, member: Member, own: list[Tensor]) -> list[Tensor | None]:
    """Each tensor as it can be walked: itself if it lies flat in the bucket's order, else a copy.
    `own` are the parameter and its states, as reals.

    Elementwise rules walk memory in the parameter's own order, if that is dense; factored ones need
    rows. States that are not as large as the parameter are rows or columns in plain order.
    """
    param, *states = own
    shape, order = param.shape, plain_strides(param.shape)
    if bucket.kind == "elementwise" and is_dense(param):
        order = param.stride()
    _, strides, lazy = member.gradient_layout
    # Of each slot its tensor, its order, the order that it should have, and if it is lazy.
    slots: list[tuple[Tensor | None, torch.Size, Any, Any, bool]] = [
        (param, shape, param.stride(), order, param.is_neg()),
        (None, shape, () if lazy else strides, order, lazy),
    ]
    for state in states:
        want = order if state.shape == shape else plain_strides(state.shape)
        slots.append((state, state.shape, state.stride(), want, state.is_neg()))
    found: list[Tensor | None] = []
    for slot, (tensor, size, strides, want, is_lazy) in enumerate(slots):
        if not is_lazy and same_order(size, strides, want):
            found.append(tensor)
            continue
        dtype, device = bucket.dtypes[slot], bucket.device
        copy = torch.empty_strided(size, want, dtype=dtype, device=device)
        bucket.stages.append(Stage(copy, _source(member, slot), len(bucket.members), slot))
        found.append(copy)
    return found


def _source(member: Member, slot: int) -> Callable[[], Tensor]:
    if slot == 0:
        return lambda: real(member.param)
    if slot == 1:
        return member.gradient
    key = member.state_keys[slot - 2]
    return lambda: real(member.state[key])


def _collect_rms(bucket: Bucket) -> None:
    """Makes the members' rms states views of one tensor that the backend writes."""
    keys = [member.rms_key for member in bucket.members]
    if not any(keys):
        return
    known = {
        index: _tensor(member.state[member.rms_key]).reshape(())
        for index, member in enumerate(bucket.members)
        if member.rms_key in member.state
    }
    bucket.rms = torch.zeros(len(keys), dtype=bucket.compute_dtype, device=bucket.device)
    where: dict[torch.device, list[int]] = {}  # a number may be on the host, as it is at first
    for index, value in known.items():
        where.setdefault(value.device, []).append(index)
    for indices in where.values():
        values = torch.stack([known[index] for index in indices]).to(bucket.rms)
        bucket.rms[torch.tensor(indices, device=bucket.device)] = values
    for member, view in zip(bucket.members, bucket.rms.unbind(), strict=True):
        if member.rms_key:
            member.state[member.rms_key] = view


def _table_row(bucket: Bucket, index: int) -> list[int]:
    """Addresses and sizes. The cell of an absent gradient is 0."""
    member, slots = bucket.members[index], bucket.slots[index]
    param, grad = slots[0], slots[1]
    assert param is not None
    if grad is None and member.is_present:
        grad = member.gradient()
    tensors = (param, grad, *slots[2:])
    row = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    if bucket.kind == "elementwise":
        return [*row, param.numel()]
    wanted = bucket.rms is not None and member.rms_key is not None
    row.append(bucket.rms[index].data_ptr() if wanted and bucket.rms is not None else 0)
    if bucket.kind == "vector":
        return [*row, param.numel()]
    rows, cols = param.shape[-2:]
    return [*row, param.numel() // (rows * cols), rows, cols]


def _tensor(value: float | Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, device="cpu")
