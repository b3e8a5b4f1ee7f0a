"""Which device a tensor is on, what the device can do, and copies to it without waiting."""

from __future__ import annotations

import torch
from torch import Tensor


def on_host(tensor: Tensor) -> bool:
    """Whether Python can read the tensor without waiting for a device."""
    return tensor.device.type == "cpu"


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is capturing the launches on `device`."""
    if device.type in ("cpu", "meta"):
        return False
    module = torch.get_device_module(device)
    ask = getattr(module, "is_current_stream_capturing", None)
    if ask is None:
        return False
    with module.device(device):
        return bool(ask())


def widest_float(device: torch.device) -> torch.dtype:
    """The dtype of scalars and long sums: float64 where the device has it."""
    if device.type == "xpu" and not torch.xpu.get_device_properties(device).has_fp64:
        return torch.float32
    return torch.float32 if device.type == "mps" else torch.float64


def to_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A copy on `device`. Only a copy to the host waits: it would be read too early."""
    return tensor.to(device, dtype or tensor.dtype, non_blocking=device.type != "cpu")
