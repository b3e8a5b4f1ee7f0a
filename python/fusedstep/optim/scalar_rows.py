"""Rows of scalars for the buckets of a plan. They are computed on the host if everything they
depend on is there, else on the bucket's device by the same formulas."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..plan.bucket import Bucket
from ..plan.counters import Step
from ..plan.history import number_of, part_of
from ..plan.plan import Plan
from ..plan.rows import HostRows

Group = dict[str, Any]
# (group, its coming step or steps, dtype of the parameter's numbers) -> the rule's scalars by name.
Scalars = Callable[[Group, Any, torch.dtype], dict[str, Any]]


def rows_of(
    plan: Plan,
    groups: list[Group],
    scalars: Scalars,
    waits_for_device: Callable[[Group], bool],
    check_steps: Callable[[Bucket], None],
) -> list[HostRows | Tensor]:
    """The rows of each bucket, for the coming step. If a step below 1 was read, `check_steps` is
    called to refuse the bucket's counters."""
    assert plan.counters is not None
    there = plan.counted_on_device
    if plan.on_device:
        waiting = {k for k, group in enumerate(groups) if waits_for_device(group)}
        if waiting:
            there = there.union(k for k in plan.on_device if not waiting.isdisjoint(plan.groups[k]))
    if len(there) < len(plan.buckets):
        of_all = plan.counters.next_of_all() if plan.all_present else None
        of_each = plan.counters.next_of_each() if of_all is None else []
    rows: list[HostRows | Tensor] = []
    for k, bucket in enumerate(plan.buckets):
        if k in there:
            bucket.rows.by_member()
            rows.append(_device_rows(bucket, groups, scalars, plan.coming_steps(k)()))
            continue
        if of_all is not None:
            bucket.rows.by_group(of_all)
            are_steps = number_of(of_all) >= 1.0
        else:
            bucket.rows.by_group_and_step(of_each, plan.present)
            are_steps = all(number_of(step) >= 1.0 for _, step in bucket.rows.keys)
        if not are_steps:
            check_steps(bucket)
        rows.append(_host_rows(bucket, groups, scalars))
    return rows


def _sign(group: Group) -> float:
    """The factor of the gradient: -1 if the step maximizes."""
    return -1.0 if group.get("maximize") else 1.0


def _host_rows(bucket: Bucket, groups: list[Group], scalars: Scalars) -> HostRows:
    dtype = bucket.number_dtype
    return HostRows(
        [
            (
                _sign(groups[index]),
                *bucket.rule.row(scalars(groups[index], step, dtype)),
                number_of(step),
            )
            for index, step in bucket.rows.keys
        ]
    )


def _device_rows(bucket: Bucket, groups: list[Group], scalars: Scalars, steps: Step) -> Tensor:
    """A row for each member. The number of calls depends on the number of groups only."""
    dtype, step = bucket.number_dtype, number_of(steps)
    # One launch writes all numbers that the host knows: it adds them to -0, which is exact.
    rows = step.new_full((2 + len(bucket.rule.scalars), len(bucket.members)), -0.0)
    known: list[tuple[Tensor, float]] = []
    computed: list[tuple[Tensor, Tensor]] = []
    first = 0
    for index, run in groupby(member.group for member in bucket.members):
        last = first + len(list(run))
        named = scalars(groups[index], part_of(steps, first, last), dtype)
        values = (_sign(groups[index]), *bucket.rule.row(named), step[first:last])
        for row, value in zip(rows[:, first:last].unbind(), values, strict=True):
            if isinstance(value, Tensor):
                computed.append((row, value if value.dim() else value.expand_as(row)))
            else:
                known.append((row, float(value)))
        first = last
    torch._foreach_add_([row for row, _ in known], [value for _, value in known])
    if computed:
        torch._foreach_copy_([row for row, _ in computed], [value for _, value in computed])
    return rows.t().contiguous()
