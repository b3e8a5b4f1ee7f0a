"""Checks of states, made before a step changes anything: an error names the parameter."""

from __future__ import annotations

import math
from typing import Any, SupportsFloat

import torch
from torch import Tensor

from .check import COMPLEX, Where, holds_nothing
from .plan import devices, shards
from .plan.layouts import FLOATS
from .shared_memory import overlaps_itself

REPAIR = "Load a checkpoint of the same optimizer, or clear the parameter's state."


def check_state(
    where: Where,
    key: str,
    value: Any,
    shape: torch.Size,
    param: Tensor,
    allowed: tuple[torch.dtype, ...],
    optimizer: str,
) -> None:
    """Refuses a state that does not fit its parameter. `allowed` are the dtypes that it may have if
    the parameter is real."""
    if (
        type(value) is Tensor
        and value.shape == shape
        and value.device == param.device
        and value.dtype in allowed
        and value.is_contiguous()
        and value.data_ptr() != 0
        and not param.is_complex()
    ):
        return
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{optimizer}: {where}: state '{key}' is {value!r}, expected a tensor of shape "
            f"{tuple(shape)}. Load a checkpoint of the same optimizer, or clear the state."
        )
    if value.is_nested or value.layout != torch.strided:
        raise TypeError(
            f"{optimizer}: {where}: state '{key}' is nested or sparse, expected a plain tensor of "
            f"shape {tuple(shape)}. Load a checkpoint of the same optimizer, or clear the state."
        )
    if value.shape != shape:
        hint = (
            "A flattened or sharded matrix has lost its rows and columns, which Adafactor needs: "
            "do not flatten it, or use an elementwise optimizer. "
            if value.dim() != param.dim()
            else ""
        )
        raise RuntimeError(
            f"{optimizer}: {where}: state '{key}' has shape {tuple(value.shape)}, expected "
            f"{tuple(shape)}. {hint}If the parameter was replaced, clear its state."
        )
    if value.device != param.device:
        raise RuntimeError(
            f"{optimizer}: {where}: state '{key}' is on {value.device}. Move it with the "
            "parameter, for instance by opt.load_state_dict(opt.state_dict())."
        )
    if holds_nothing(value):
        raise RuntimeError(
            f"{optimizer}: {where}: state '{key}' holds no data: it is a fake tensor, or its "
            "storage was freed. Load a checkpoint, or clear the state."
        )
    if value.dtype not in (COMPLEX if param.is_complex() else allowed):
        raise TypeError(
            f"{optimizer}: {where}: state '{key}' has dtype {value.dtype}, expected one of "
            f"{', '.join(str(dtype) for dtype in allowed)}. Convert it, or clear the state."
        )
    if overlaps_itself(value):
        raise RuntimeError(
            f"{optimizer}: {where}: elements of state '{key}' share memory (it was expanded), so "
            "it cannot be updated in place. Give it separate memory with .clone()."
        )


def check_spread(
    where: Where,
    key: str,
    value: Any,
    shape: torch.Size,
    param: Any,
    placements: tuple[Any, ...],
    optimizer: str,
) -> None:
    """Refuses a state of a DTensor that is not spread as the parameter needs it."""
    said = f"a {type(value).__name__}"
    if shards.is_dtensor(value):
        if (value.shape, value.device_mesh, value.placements) == (
            shape,
            param.device_mesh,
            placements,
        ):
            return
        said += f" of shape {tuple(value.shape)} with placements {value.placements}"
    raise TypeError(
        f"{optimizer}: {where}: state '{key}' is {said}, expected a DTensor of shape "
        f"{tuple(shape)} with placements {placements} on the parameter's mesh. Load it with "
        "torch.distributed.checkpoint, redistribute it, or clear the parameter's state."
    )


def check_step(where: object, step: Any, param: Tensor, optimizer: str) -> None:
    """Refuses a counter that is not a step number. The value of one on a device is not read."""
    if isinstance(step, Tensor):
        if step.numel() != 1 or step.is_complex():
            raise ValueError(
                f"{optimizer}: {where}: its step counter has shape {tuple(step.shape)} and dtype "
                f"{step.dtype}, expected one real number. {REPAIR}"
            )
        if _has_lost_data(step, param):
            raise RuntimeError(
                f"{optimizer}: {where}: its step counter holds no data: it is on the meta device, "
                f"or a fake tensor, or its storage was freed. {REPAIR}"
            )
        if not devices.on_host(step):
            return
    try:
        value = float(step)
    except (TypeError, ValueError):
        raise TypeError(
            f"{optimizer}: {where}: its step counter is {step!r}, expected a number. {REPAIR}"
        ) from None
    if not 0.0 <= value < math.inf:
        raise ValueError(
            f"{optimizer}: {where}: its step counter is {value:g}, expected the number of steps "
            f"taken, 0 or more. {REPAIR}"
        )


def check_number(where: object, key: str, value: Any, param: Tensor, optimizer: str) -> None:
    """Refuses a state that is not one number. Any value is allowed."""
    if isinstance(value, Tensor):
        if value.numel() == 1 and value.dtype in FLOATS and not _has_lost_data(value, param):
            return
        said = f"a tensor of shape {tuple(value.shape)} and dtype {value.dtype} on {value.device}"
    else:
        if isinstance(value, SupportsFloat):
            return
        said = repr(value)
    raise TypeError(f"{optimizer}: {where}: state '{key}' is {said}, expected one number. {REPAIR}")


def _has_lost_data(number: Tensor, param: Tensor) -> bool:
    """Whether a state of one number has no data although its parameter has."""
    on_meta = number.device.type == "meta" and param.device.type != "meta"
    return on_meta or holds_nothing(number)
