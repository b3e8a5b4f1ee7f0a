"""Checks of parameters, gradients and arguments, made before a step changes anything. An error
names the parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, SupportsFloat

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .plan import flat, shards
from .plan.layouts import FLOATS, Layout, Layouts
from .shared_memory import Memory, find_shared, overlaps_itself

COMPLEX = (torch.complex64, torch.complex128)


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
    if type(param) in shards.PLAIN and type(grad) is Tensor:
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
        if holds_nothing(tensor):
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


def holds_nothing(tensor: Tensor) -> bool:
    """Whether a tensor has no data although its device has memory."""
    if tensor.numel() == 0 or tensor.device.type == "meta":
        return False
    return isinstance(tensor, FakeTensor) or tensor.data_ptr() == 0


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
