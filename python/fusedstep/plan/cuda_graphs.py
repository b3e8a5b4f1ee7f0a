"""Checks whether a CUDA graph can capture a step. Refuses what a replay would get wrong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from . import devices
from .counters import IntCounters
from .plan import Owner, Plan


def check_capture(owner: Owner, plan: Plan) -> None:
    """Called when a step is captured. Refuses what a graph would replay wrongly."""
    if plan.exchange is not None:
        raise RuntimeError(
            f"{owner.name}: some parameters are sharded, and processes add up sums in the middle "
            "of a step: that was never tried under capture. Step outside the graph."
        )
    for position, member in enumerate(plan.members):
        if not devices.is_capturing(member.param.device):
            raise RuntimeError(
                f"{owner.name}: {owner.where(member)} takes part in a step that is "
                "captured, but a graph would not replay it. Give it a separate optimizer, and "
                "step that one outside the graph."
            )
        if plan.counters is not None and not plan.counters.is_on_device(position):
            raise RuntimeError(_why_not(owner, owner.where(member)))


def refuse_new_plan_while_capturing(
    owner: Owner,
    params: Iterable[tuple[object, Tensor, bool, Any]],
    old: Plan | None,
) -> None:
    """Raises if the capture would need a new plan, which is made on the host and copied.

    Arguments:
        params: for each parameter with a gradient: its name for an error, the parameter, whether
            its counter belongs on the device, and its counter or None.
        old: the last plan, which does not hold any more.
    """
    params = list(params)
    on_device = {param.device for _, param, _, _ in params if not devices.on_host(param)}
    if not any(map(devices.is_capturing, on_device)):
        return
    for where, _, counts_on_device, step in params:
        if not counts_on_device and (not isinstance(step, Tensor) or devices.on_host(step)):
            raise RuntimeError(_why_not(owner, where))
    if old is not None and old.captured:
        raise RuntimeError(
            f"{owner.name}: tensors moved since an earlier graph was captured. Run one warm-up "
            "step before capture, outside any graph, or keep gradients in place with "
            "zero_grad(set_to_none=False)."
        )
    raise RuntimeError(
        f"{owner.name}: run one warm-up step before capture: states and work lists must "
        "exist before, for the same parameters with gradients and the same options."
    )


def _why_not(owner: Owner, where: object) -> str:
    if owner.counters is IntCounters:
        return (
            f"{owner.name} keeps Python step counters and cannot be captured in a CUDA "
            "graph: each replay would be the same step again. Use fusedstep.optim.Adafactor(..., "
            "capturable=True) or fusedstep.optim.AdamW(..., capturable=True)."
        )
    return (
        f"{owner.name}: capture in a CUDA graph needs capturable=True: the step counter of "
        f"{where} is on the host, and each replay would be the same step again."
    )
