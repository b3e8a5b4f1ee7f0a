"""Reads hyper-parameters as float64 numbers, on the host or on a device."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..operations import on_tensors
from ..plan import devices


def scalar(value: Any) -> float:
    """A number, or a tensor of one element, as a float."""
    return float(value.item() if isinstance(value, Tensor) else value)


def device_scalar(device: torch.device, value: Any) -> float | Tensor:
    """The same for a computation on `device`. A tensor that is not on the host becomes a 0-d tensor
    on `device`, with no host sync."""
    if isinstance(value, Tensor) and not devices.on_host(value):
        moved = devices.to_device(value, device, devices.widest_float(device))
        return moved.reshape(()) if moved.dim() else moved
    return scalar(value)


def for_steps(
    step: float | Tensor, formula: Callable[..., Any]
) -> tuple[Callable[[Any], Any], Callable[..., dict[str, Any]]]:
    """Returns two functions: one reads a hyper-parameter, the other runs the formula. `step` is a
    number, or a tensor with the numbers of many steps on a device."""
    if isinstance(step, Tensor):
        return partial(device_scalar, step.device), on_tensors(formula)
    return scalar, formula


def rounded(value: Any, dtype: torch.dtype) -> Any:
    """A number, or a tensor of numbers, rounded to a counter's dtype."""
    if isinstance(value, Tensor):
        return value.to(dtype).to(value.dtype)
    return ctypes.c_float(value).value if dtype == torch.float32 else value


def steps_as_tensors(
    states: Mapping[Any, Any], params: Iterable[Tensor], dtype: torch.dtype
) -> None:
    """Turns step counters that are numbers, as in old checkpoints, into tensors. Others are left
    for the next step to check."""
    for param in params:
        state = states.get(param) or {}
        step = state.get("step")
        if isinstance(step, Real):
            state["step"] = torch.tensor(float(step), dtype=dtype, device="cpu")


def start_counters(states: Mapping[Any, Any], key: str) -> None:
    """Gives a counter to each state that a peer without counters saved: one that has `key`."""
    for own in states.values():
        if own.get(key) is not None and "step" not in own:
            own["step"] = torch.ones((), dtype=scalar_dtype(), device="cpu")


def scalar_dtype(fused: bool | None = None) -> torch.dtype:
    """The dtype of torch's step counters."""
    if not fused and torch.get_default_dtype() == torch.float64:
        return torch.float64
    return torch.float32
