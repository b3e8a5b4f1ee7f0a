"""What a step takes beside parameters, gradients and states: launches, and memory at its peak."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from bench.allocations import Allocations, scratch_bytes
from bench.devices import Step


class Calls(TorchDispatchMode):
    """Counts the operators of torch that are called while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def on_device(seen: profile) -> Iterator[Any]:
    """What a profiler saw a GPU do, without the ranges that torch names there (every opt.step() is
    one), as the profiler's own records: torch's objects of them take longer than most kernels."""
    for event in seen.profiler.kineto_results.events():
        if event.device_type() == torch.autograd.DeviceType.CUDA and not event.is_user_annotation():
            yield event


def launches(step: Step, kind: str) -> int:
    """Kernels on a GPU, as torch's profiler counts them; on a CPU operators of torch, and launches
    of ours, which torch does not see."""
    if kind == "cpu":
        plan = getattr(getattr(step, "__self__", None), "_plan", None)
        with Calls() as calls:
            step()
        return calls.count + (len(plan.buckets) if plan else 0)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    return sum(not event.name().startswith(("Memcpy", "Memset")) for event in on_device(seen))


def extra_bytes(step: Step, kind: str) -> int:
    """The most that a step allocates at once, with the scratch that ours keep."""
    with Allocations(kind) as own:
        step()
    optimizer = getattr(step, "__self__", None)
    return own.most + (0 if optimizer is None else scratch_bytes(optimizer))
