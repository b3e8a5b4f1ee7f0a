"""What an optimizer allocates: the bytes of its states, and every request to torch's allocators."""

import gc
import os
from itertools import accumulate
from operator import itemgetter
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def plain_tensors(value: object) -> list[torch.Tensor]:
    """The tensors that hold a state's memory. A wrapper, such as a quantized tensor, has more."""
    if not isinstance(value, torch.Tensor):
        return []
    if not hasattr(value, "__tensor_flatten__"):
        return [value]
    names, _ = value.__tensor_flatten__()
    return [tensor for name in names for tensor in plain_tensors(getattr(value, name))]


def state_bytes(optimizer: torch.optim.Optimizer, *kinds: str) -> int:
    """Bytes of state on devices of these kinds. Views of one storage count once."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    tensors = [tensor for value in values for tensor in plain_tensors(value)]
    storages = [t.untyped_storage() for t in tensors if t.device.type in kinds]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def scratch_bytes(optimizer: torch.optim.Optimizer) -> int:
    """What our C++ code takes from the system. torch's allocator does not see it."""
    plan = getattr(optimizer, "_plan", None)
    return 0 if plan is None else plan.scratch_bytes()


class Allocations:
    """Records what torch's allocator of a device is asked for."""

    def __init__(self, kind: str) -> None:
        self.on_gpu = kind != "cpu"
        # Bytes in use at the end and at the peak, compared with the beginning.
        self.left = self.most = 0

    def __enter__(self) -> "Allocations":
        gc.collect()
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it prints when it starts
            self._profile: Any = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self._profile.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
            self.left = torch.cuda.memory_allocated() - self._before
            self.most = torch.cuda.max_memory_allocated() - self._before
            return
        self._profile.__exit__(*error)
        events = self._profile.profiler.kineto_results.events()
        changes = sorted(
            ((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"),
            key=itemgetter(0),
        )
        in_use = list(accumulate((change for _, change in changes), initial=0))
        self.left, self.most = in_use[-1], max(in_use)
