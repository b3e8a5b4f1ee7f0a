"""Hyper-parameters as the float64 numbers that scalars are computed from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def scalar(value: Any) -> float:
    """A number, or a tensor of one element, as a float."""
    return float(value.item() if isinstance(value, Tensor) else value)


def scalar_dtype(fused: bool | None = None) -> torch.dtype:
    """The dtype of torch's step counters."""
    if not fused and torch.get_default_dtype() == torch.float64:
        return torch.float64
    return torch.float32
