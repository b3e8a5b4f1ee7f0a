"""What a CUDA graph can capture of a step, and what is refused because a replay would be wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .. import check, steps
from .planned import Plan

if TYPE_CHECKING:
    from .base import FusedOptimizer


def keep_if_capturing(optimizer: FusedOptimizer, plan: Plan) -> None:
    """Refuses what a graph would repeat wrongly. What it reads has to live as long as it does."""
    if not any(map(steps.is_capturing, plan.devices)):
        return
    for position, member in enumerate(plan.members):
        if not steps.is_capturing(member.param.device):
            raise RuntimeError(
                f"{_name(optimizer)}: {optimizer.where(member)} takes part in a step that is "
                "captured, and a graph would not repeat it. Give it an optimizer of its own, and "
                "step that one outside the graph."
            )
        if plan.steps is not None and not plan.steps.is_away(position):
            raise RuntimeError(_why_not(optimizer, optimizer.where(member)))
    plan.captured = True
    optimizer._captured.append(plan)


def refuse_new_plan_while_capturing(optimizer: FusedOptimizer, old: Plan | None) -> None:
    """A plan is made on the host, and copied: a graph can only use one that exists."""
    groups = optimizer.param_groups
    params = [param for group in groups for param in group["params"] if param.grad is not None]
    devices = {param.device for param in params if not steps.on_host(param)}
    if not any(map(steps.is_capturing, devices)):
        return
    for index, group in enumerate(groups):
        for i, param in enumerate(group["params"]):
            if param.grad is None or optimizer._counts_on_device(group):
                continue
            step = optimizer.state.get(param, {}).get("step")
            if not isinstance(step, Tensor) or steps.on_host(step):
                raise RuntimeError(_why_not(optimizer, check.Where(groups, index, i)))
    if old is not None and old.captured:
        raise RuntimeError(
            f"{_name(optimizer)}: tensors are not where they were in the graph that was captured "
            "before. Run one warm-up step before capture, outside any graph, or keep gradients in "
            "place with zero_grad(set_to_none=False)."
        )
    raise RuntimeError(
        f"{_name(optimizer)}: run one warm-up step before capture: states and work lists must "
        "exist before, for the same parameters with gradients and the same options."
    )


def _name(optimizer: FusedOptimizer) -> str:
    return type(optimizer).__name__


def _why_not(optimizer: FusedOptimizer, where: check.Where) -> str:
    if not optimizer.steps_are_tensors:
        return (
            f"{_name(optimizer)} keeps Python step counters and cannot be captured in a CUDA "
            "graph: each replay would be the same step again. Use fusedstep.optim.Adafactor(..., "
            "capturable=True) or fusedstep.optim.AdamW(..., capturable=True)."
        )
    return (
        f"{_name(optimizer)}: capture in a CUDA graph needs capturable=True: the step counter of "
        f"{where} is on the host, and each replay would be the same step again."
    )
