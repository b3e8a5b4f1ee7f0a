"""Where tensors lie, what a device can do, and moving numbers there without waiting."""

from __future__ import annotations

import torch
from torch import Tensor


def on_host(tensor: Tensor) -> bool:
    """Whether its numbers can be read without waiting for a device."""
    return tensor.device.type == "cpu"


def is_capturing(device: torch.device) -> bool:
    """Whether launches on `device` now go into a graph, to run later and perhaps often."""
    if device.type in ("cpu", "meta"):
        return False
    module = torch.get_device_module(device)
    asks = getattr(module, "is_current_stream_capturing", None)
    if asks is None:
        return False
    with module.device(device):
        return bool(asks())


def wide(device: torch.device) -> torch.dtype:
    """The dtype of scalars and long sums: float64 where the device has it."""
    if device.type == "xpu" and not torch.xpu.get_device_properties(device).has_fp64:
        return torch.float32
    return torch.float32 if device.type == "mps" else torch.float64


def to_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A copy on `device`. Nothing waits, unless the device is the host: it would read too early."""
    return tensor.to(device, dtype or tensor.dtype, non_blocking=device.type != "cpu")
