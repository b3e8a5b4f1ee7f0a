"""Checks of parameters, gradients, states and arguments, made before a step changes anything. An
error names the parameter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, SupportsFloat

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .plan import devices, flat, shards
from .plan.layouts import FLOATS, Layout, Layouts
from .shared_memory import Memory, find_shared, overlaps_itself

COMPLEX = (torch.complex64, torch.complex128)
PLAIN = {torch.nn.Parameter, Tensor}
REPAIR = "Load a checkpoint of the same optimizer, or clear the parameter's state."


@dataclass(slots=True, eq=False)
class Where:
    """A parameter's place in the groups: `parameter 3 of group 0 ('fc.weight', shape ...)`. The
    text is made only when an error needs it."""

    groups: list[dict[str, Any]]
    group: int
    index: int

    @property
    def place(self) -> str:
        return f"parameter {self.index} of group {self.group}"

    def __str__(self) -> str:
        param = self.groups[self.group]["params"][self.index]
        names = self.groups[self.group].get("param_names") or ()
        name = names[self.index] if self.index < len(names) else None
        return f"{self.place} ({described(param, name)})"


def all_places(groups: list[dict[str, Any]]) -> Iterator[tuple[Where, Tensor]]:
    """All parameters, each with its place."""
    for index, group in enumerate(groups):
        for i, param in enumerate(group["params"]):
            yield Where(groups, index, i), param


def described(param: Tensor, name: str | None) -> str:
    """How errors describe a parameter: `'fc.weight', shape (2, 3), torch.float32, on cpu`."""
    named = "" if name is None else f"'{name}', "
    shape = "nested" if param.is_nested else f"shape {tuple(param.shape)}"
    piece = flat.piece_of(param)
    if piece is not None:
        shape += f" of the whole {tuple(piece.shape)}"
    return f"{named}{shape}, {param.dtype}, on {param.device}"


def check_only_once(groups: list[dict[str, Any]], params: list[Tensor], optimizer: str) -> None:
    """Refuses a parameter that is twice in `params`."""
    if len({*map(id, params)}) == len(params):
        return
    taken = {*map(id, params)}
    first: dict[int, Where] = {}
    for where, param in all_places(groups):
        if id(param) in taken and first.setdefault(id(param), where) is not where:
            raise ValueError(
                f"{optimizer}: {where} is {first[id(param)]} once more: one step cannot update it "
                "twice. Give it once."
            )


def check_memory(
    memory: Memory, named: Callable[[], Iterable[tuple[str, Tensor]]], optimizer: str
) -> None:
    """Refuses tensors that share memory if a step writes one of them. `named` gives all tensors,
    each with its name for the error."""
    found = find_shared(memory)
    if found is None:
        return
    tensors = memory.tensors()
    earlier, later = (tensors[place] for place in found)
    names = [[name for name, tensor in named() if tensor is own] for own in (earlier, later)]
    first, second = names[0][:2] if earlier is later else (names[0][0], names[1][0])
    raise RuntimeError(
        f"{optimizer}: {second} shares memory with {first}: one step cannot update both correctly. "
        "To tie weights, use one parameter in both places, as in decoder.weight = encoder.weight; "
        "else give one of them separate memory with .clone()."
    )


def look_at(
    where: object, param: Tensor, grad: Tensor, layouts: Layouts, optimizer: str
) -> tuple[tuple[Layout, Layout], tuple[int, int]]:
    """The layouts and addresses of a parameter and its gradient. Refuses tensors that no backend
    can update correctly; `where` names them in the error."""
    if type(param) in PLAIN and type(grad) is Tensor:
        try:
            own = layouts.of(param)
            other = own if own.is_of(grad) else layouts.of(grad)
            addresses = param.data_ptr(), grad.data_ptr()
        except RuntimeError:  # a nested tensor, or one without a storage, such as a sparse one
            pass
        else:
            alike = other is own or (other.shape == own.shape and other.device == own.device)
            if own.is_plain and own.is_float and other.is_float and alike and all(addresses):
                return (own, other), addresses
    if shards.is_dtensor(param) or shards.is_dtensor(grad):
        if reason := shards.why_not(param, grad):
            raise TypeError(f"{optimizer}: {where}: {reason}.")
        param, grad = shards.local(param), shards.local(grad)
    check_tensors(where, param, grad, optimizer)
    found = layouts.of(param), layouts.of(grad)
    return found, (param.data_ptr(), shards.address_of(grad))


def check_tensors(where: object, param: Tensor, grad: Tensor, optimizer: str) -> None:
    """Refuses a parameter or gradient that no backend can update correctly."""
    for tensor, what in ((param, "the parameter"), (grad, "its gradient")):
        if is_traceable_wrapper_subclass(tensor):
            raise TypeError(
                f"{optimizer}: {where}: {what} is a {type(tensor).__name__}, expected a plain "
                "tensor or a DTensor of plain tensors. Use torch's optimizer for other wrappers."
            )
        if tensor.is_nested:
            raise TypeError(
                f"{optimizer}: {where}: {what} is a nested tensor, expected a plain one. Make each "
                "of its parts a parameter, or use torch's optimizer for it."
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
                "was freed or never made. Allocate it first, or leave it out of the step."
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
            "it cannot be updated in place. Give it separate memory with .clone()."
        )


def check_state(
    where: Where, key: str, value: Any, shape: torch.Size, param: Tensor, optimizer: str
) -> None:
    """Refuses a state that does not fit its parameter."""
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


def check_rms(where: object, key: str, value: Any, param: Tensor, optimizer: str) -> None:
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


def _holds_nothing(tensor: Tensor) -> bool:
    """Whether a tensor has no data although its device has memory."""
    if tensor.numel() == 0 or tensor.device.type == "meta":
        return False
    return isinstance(tensor, FakeTensor) or tensor.data_ptr() == 0


def _has_lost_data(number: Tensor, param: Tensor) -> bool:
    """Whether a state of one number has no data although its parameter has."""
    on_meta = number.device.type == "meta" and param.device.type != "meta"
    return on_meta or _holds_nothing(number)


def number(value: Any, name: str) -> Any:
    """Converts numbers given as strings, at any depth. YAML reads 1e-3 as a string."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"{name} should be a number but is: {value!r}") from None
    if isinstance(value, (tuple, list)):
        return type(value)(number(item, name) for item in value)
    return value


def one_number(value: Any, name: str) -> Any:
    """The same for an argument that must be one number."""
    value = number(value, name)
    if not isinstance(value, (SupportsFloat, Tensor)):
        raise TypeError(f"{name} should be a number but is: {value!r}")
    return value


def two_numbers(value: Any, name: str) -> Any:
    """The same for an argument that must be a pair. Its values are checked later."""
    value = number(value, name)
    if not (isinstance(value, (tuple, list)) and len(value) == 2):
        raise TypeError(f"{name} should be two numbers but is: {value!r}")
    return value


def state_dtype(value: Any) -> torch.dtype | None:
    """Refuses a dtype that states cannot have. In float16 small second moments would be 0."""
    if value is None or value in (torch.float32, torch.bfloat16):
        return value  # type: ignore[no-any-return]
    raise ValueError(
        "state_dtype should be torch.float32, torch.bfloat16, or None for the peer's dtypes, but "
        f"is: {value!r}"
    )
