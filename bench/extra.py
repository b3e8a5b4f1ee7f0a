"""What a step takes beside parameters, gradients and states: launches, and memory at its peak."""

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
    cuda, moves = torch.autograd.DeviceType.CUDA, ("Memcpy", "Memset")
    return sum(e.device_type == cuda and not e.name.startswith(moves) for e in seen.events())


def extra_bytes(step: Step, kind: str) -> int:
    """The most that a step allocates at once, with the scratch that ours keep."""
    with Allocations(kind) as own:
        step()
    optimizer = getattr(step, "__self__", None)
    return own.most + (0 if optimizer is None else scratch_bytes(optimizer))
