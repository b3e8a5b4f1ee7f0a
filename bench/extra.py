"""What a step needs beside parameters, gradients and states: launches, and memory at its peak."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from bench.allocations import Allocations, scratch_bytes
from bench.devices import Step


class Calls(TorchDispatchMode):
    """Counts the torch operators that are called while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def on_device(seen: profile) -> Iterator[Any]:
    """The profiler's records of the GPU's work, without the ranges that torch adds, such as one for
    each opt.step(). We read raw records, because torch's event objects take long to make."""
    assert seen.profiler is not None and seen.profiler.kineto_results is not None
    for event in seen.profiler.kineto_results.events():
        if event.device_type() == torch.autograd.DeviceType.CUDA and not event.is_user_annotation():
            yield event


def launches(step: Step, kind: str) -> int:
    """The kernels of a step on a GPU, as torch's profiler counts them. On a CPU it is the torch
    operators, and our own launches, which torch does not see."""
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
    """The most that a step allocates at once, and the scratch memory that ours keeps."""
    with Allocations(kind) as allocated:
        step()
    optimizer = getattr(step, "__self__", None)
    return allocated.most + (0 if optimizer is None else scratch_bytes(optimizer))
