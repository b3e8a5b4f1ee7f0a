"""Which device a tensor is on, what the device can do, and copies to it without waiting."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor


def on_host(tensor: Tensor) -> bool:
    """Whether Python can read the tensor without waiting for a device."""
    return tensor.device.type == "cpu"


_FAKE = torch._C._TorchDispatchModeKey.FAKE


def is_faking() -> bool:
    """Whether torch's FakeTensorMode is active. Kernels of ours would not notice it."""
    return torch._C._get_dispatch_mode(_FAKE) is not None


NO_SWITCH: AbstractContextManager[Any] = nullcontext()


def made_current(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which a GPU is the current device. Mostly it already is; a switch takes 3 us."""
    module = torch.get_device_module(device)
    return NO_SWITCH if module.current_device() == device.index else module.device(device)


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is capturing the launches on `device`."""
    ask = _asks_for_captures(device)
    if ask is None:
        return False
    with made_current(device):
        return bool(ask())


@cache
def _asks_for_captures(device: torch.device) -> Callable[[], bool] | None:
    if device.type in ("cpu", "meta"):
        return None
    return getattr(torch.get_device_module(device), "is_current_stream_capturing", None)


def widest_float(device: torch.device) -> torch.dtype:
    """The dtype of scalars and long sums: float64 where the device has it."""
    if device.type == "xpu" and not torch.xpu.get_device_properties(device).has_fp64:
        return torch.float32
    return torch.float32 if device.type == "mps" else torch.float64


def to_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A copy on `device`. Only a copy to the host waits: it would be read too early."""
    return tensor.to(device, dtype or tensor.dtype, non_blocking=device.type != "cpu")
