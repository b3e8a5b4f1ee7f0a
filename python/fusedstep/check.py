"""Checks at the door: what a step cannot take is refused by name, before anything has changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .plan import devices
from .shared_memory import find_shared, overlaps_itself

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)
PLAIN = (torch.nn.Parameter, Tensor)
REPAIR = "Load a checkpoint of the same optimizer, or clear the parameter's state."


@dataclass(slots=True, eq=False)
class Where:
    """A parameter as its owner knows it: `parameter 3 of group 0 ('fc.weight', shape ...)`. The
    text is made only if an error needs it."""

    groups: list[dict[str, Any]]
    group: int
    index: int

    def __str__(self) -> str:
        param = self.groups[self.group]["params"][self.index]
        names = self.groups[self.group].get("param_names") or ()
        name = names[self.index] if self.index < len(names) else None
        return f"parameter {self.index} of group {self.group} ({described(param, name)})"


def described(param: Tensor, name: str | None) -> str:
    """`'fc.weight', shape (2, 3), torch.float32, on cpu`, as it stands in every error."""
    named = "" if name is None else f"'{name}', "
    shape = "nested" if param.is_nested else f"shape {tuple(param.shape)}"
    return f"{named}{shape}, {param.dtype}, on {param.device}"


def check_only_once(first: dict[int, Where], where: Where, param: Tensor, optimizer: str) -> None:
    """Refuses a parameter that `first` has already, and remembers it there."""
    if first.setdefault(id(param), where) is not where:
        raise ValueError(
            f"{optimizer}: {where} is {first[id(param)]} once more: one step cannot update it "
            "twice. Give it once."
        )


def check_memory(
    tensors: Sequence[Tensor],
    n_written: int,
    named: Callable[[], Iterable[tuple[str, Tensor]]],
    optimizer: str,
) -> None:
    """Refuses tensors that share memory if a step writes one of them.

    Arguments:
        tensors: parameters and states first, the `n_written` that a step writes, then gradients.
        named: all of them as an error names them.
    """
    found = find_shared(tensors, n_written)
    if found is None:
        return
    earlier, later = (tensors[place] for place in found)
    names = [[name for name, tensor in named() if tensor is own] for own in (earlier, later)]
    first, second = names[0][:2] if earlier is later else (names[0][0], names[1][0])
    raise RuntimeError(
        f"{optimizer}: {second} shares memory with {first}: one step cannot update both rightly. "
        "To tie weights, use one parameter in both places, as in decoder.weight = encoder.weight; "
        "else give one of them memory of its own with .clone()."
    )


def check_tensors(where: object, param: Tensor, grad: Tensor, optimizer: str) -> None:
    """Refuses a parameter or gradient that no backend could take rightly; `where` names it."""
    if _is_usual(param, grad):
        return
    for tensor, what in ((param, "the parameter"), (grad, "its gradient")):
        if is_traceable_wrapper_subclass(tensor):
            raise TypeError(
                f"{optimizer}: {where}: {what} is a {type(tensor).__name__}. This version takes "
                "plain tensors only: leave sharded or wrapped parameters to torch itself."
            )
        if tensor.is_nested:
            raise TypeError(
                f"{optimizer}: {where}: {what} is a nested tensor, expected a plain one. Make each "
                "of its parts a parameter, or leave it to torch itself."
            )
        if tensor.layout != torch.strided:
            raise RuntimeError(
                f"{optimizer}: {where}: {what} has layout {tensor.layout}, expected a dense one. "
                "Convert it with .to_dense()."
            )
        if tensor.device.type == "meta":
            raise RuntimeError(
                f"{optimizer}: {where}: {what} is on the meta device, which holds no data. "
                "Move the model to a real device first, as with model.to_empty(device=...)."
            )
        if _holds_nothing(tensor):
            raise RuntimeError(
                f"{optimizer}: {where}: {what} holds no data: it is a fake tensor, or its storage "
                "was freed or never made. Give it memory first, or leave it out of the step."
            )
        if tensor.dtype not in FLOATS + COMPLEX:
            known = ", ".join(str(dtype) for dtype in FLOATS)
            raise TypeError(
                f"{optimizer}: {where}: {what} has dtype {tensor.dtype}, expected one of {known}. "
                "Convert it, or leave it out."
            )
    if grad.shape != param.shape:
        raise RuntimeError(
            f"{optimizer}: {where}: its gradient has shape {tuple(grad.shape)}. Set .grad again "
            "after the parameter's .data was replaced."
        )
    if grad.device != param.device:
        raise RuntimeError(
            f"{optimizer}: {where}: its gradient is on {grad.device}. Move both to the same device."
        )
    if grad.is_complex() != param.is_complex():
        raise TypeError(f"{optimizer}: {where}: only one of parameter and gradient is complex.")
    if overlaps_itself(param):
        raise RuntimeError(
            f"{optimizer}: {where}: elements of the parameter share memory (it was expanded), so "
            "an update in place has no meaning. Make it a tensor of its own with .clone()."
        )


def check_state(
    where: Where, key: str, value: Any, shape: torch.Size, param: Tensor, optimizer: str
) -> None:
    """Refuses a state that does not belong to its parameter any more."""
    if (
        type(value) is Tensor
        and value.shape == shape
        and value.device == param.device
        and value.dtype in FLOATS
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
    if _holds_nothing(value):
        raise RuntimeError(
            f"{optimizer}: {where}: state '{key}' holds no data: it is a fake tensor, or its "
            "storage was freed. Load a checkpoint, or clear the state."
        )
    if value.dtype not in (COMPLEX if param.is_complex() else FLOATS):
        raise TypeError(
            f"{optimizer}: {where}: state '{key}' has dtype {value.dtype}, expected one of "
            f"{', '.join(str(dtype) for dtype in FLOATS)}. Convert it, or clear the state."
        )
    if overlaps_itself(value):
        raise RuntimeError(
            f"{optimizer}: {where}: elements of state '{key}' share memory (it was expanded), so "
            "an update in place has no meaning. Make it a tensor of its own with .clone()."
        )


def check_step(where: object, step: Any, param: Tensor, optimizer: str) -> None:
    """Refuses a step counter that no step can follow. The number of one on a device is not read."""
    if isinstance(step, Tensor):
        if step.numel() != 1 or step.is_complex():
            raise ValueError(
                f"{optimizer}: {where}: its step counter has shape {tuple(step.shape)} and dtype "
                f"{step.dtype}, expected one real number. {REPAIR}"
            )
        if _is_away(step, param):
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


def check_rms(where: object, key: str, value: Any, param: Tensor, optimizer: str) -> None:
    """Refuses a state that is not one number, of any value."""
    if isinstance(value, Tensor):
        if value.numel() == 1 and value.dtype in FLOATS and not _is_away(value, param):
            return
        said = f"a tensor of shape {tuple(value.shape)} and dtype {value.dtype} on {value.device}"
    else:
        if isinstance(value, SupportsFloat):
            return
        said = repr(value)
    raise TypeError(f"{optimizer}: {where}: state '{key}' is {said}, expected one number. {REPAIR}")


def _is_usual(param: Tensor, grad: Tensor) -> bool:
    """Whether nothing can be wrong with them: what is asked first, of every one of many tensors."""
    return (
        type(param) in PLAIN
        and type(grad) is Tensor
        and not (param.is_nested or grad.is_nested)
        and param.layout is grad.layout is torch.strided
        and param.dtype in FLOATS
        and grad.dtype in FLOATS
        and param.shape == grad.shape
        and param.device == grad.device
        and param.is_contiguous()
        and param.data_ptr() != 0
        and grad.data_ptr() != 0
    )


def _holds_nothing(tensor: Tensor) -> bool:
    """Though its device would."""
    if tensor.numel() == 0 or tensor.device.type == "meta":
        return False
    return isinstance(tensor, FakeTensor) or tensor.data_ptr() == 0


def _is_away(number: Tensor, param: Tensor) -> bool:
    """Whether a state of one number holds nothing, though its parameter does."""
    on_meta = number.device.type == "meta" and param.device.type != "meta"
    return on_meta or _holds_nothing(number)


def number(value: Any, name: str) -> Any:
    """`value` with numbers given as strings (as YAML reads 1e-3) converted, at any depth."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"{name} should be a number but is: {value!r}") from None
    if isinstance(value, (tuple, list)):
        return type(value)(number(item, name) for item in value)
    return value


def one_number(value: Any, name: str) -> Any:
    """The same for an argument that has to be one."""
    value = number(value, name)
    if not isinstance(value, (SupportsFloat, Tensor)):
        raise TypeError(f"{name} should be a number but is: {value!r}")
    return value


def two_numbers(value: Any, name: str) -> Any:
    """The same for an argument that has to be a pair. What is in it is looked at later."""
    value = number(value, name)
    if not (isinstance(value, (tuple, list)) and len(value) == 2):
        raise TypeError(f"{name} should be two numbers but is: {value!r}")
    return value
