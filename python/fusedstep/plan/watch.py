"""The watch: a cheap check at every step whether the tensors are still where the plan saw them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .. import native
from . import shards
from .layouts import Layout

ParamLists = list[list[Tensor]]
Earlier = Sequence[Layout | None]

CAME_OR_WENT = 1 << 40  # added to what `check` returns


class Watch(Protocol):
    """`check` returns the number of gradients that moved, plus CAME_OR_WENT if some came or went.
    It writes their cells: the address, or 0 for a gradient that went. It returns -1 if anything
    else changed: parameters, states, shapes, strides, dtypes, a gradient that the plan did not
    know, or one that comes back in another layout. Some cells may have been written by then. Every
    later check returns -1 too.

    `present` tells for each parameter, in the order of the lists, whether it had a gradient."""

    def check(self, param_lists: ParamLists, state: dict[Tensor, dict[str, Any]]) -> int: ...
    def present(self) -> bytes: ...


def watch(
    param_lists: ParamLists,
    state: dict[Tensor, dict[str, Any]],
    keys: tuple[str, ...],
    cells: list[int],
    earlier: Earlier = (),
) -> Watch:
    """Remembers parameters, gradients and the state tensors named by `keys`. The caller keeps
    parameters and state dicts alive.

    Arguments:
        cells: for each parameter, the address of the table cell of its gradient, or 0.
        earlier: for each parameter, the last known layout of an absent gradient, or None.
    """
    if native.module is not None and _can_watch() and _can_look_into(param_lists):
        known = {layout: layout and _in_native_form(layout) for layout in {*earlier}}
        layouts = [known[layout] for layout in earlier]
        return native.module.Watch(param_lists, state, keys, cells, layouts)
    return PythonWatch(param_lists, state, keys, cells, earlier)


def _in_native_form(layout: Layout) -> tuple[int, int, bool, tuple[int, ...]]:
    """A layout for C++: the dtype in DLPack's codes, whether the gradient is negated, strides."""
    bits = 8 * layout.dtype.itemsize
    return _code(layout.dtype), bits, _is_negated(layout), layout.strides


def _code(dtype: torch.dtype) -> int:
    """DLPack's code of a dtype."""
    if not (dtype.is_complex or dtype.is_floating_point):
        return 6 if dtype == torch.bool else int(not dtype.is_signed)
    return 5 if dtype.is_complex else 4 if dtype == torch.bfloat16 else 2


def _is_negated(layout: Layout) -> bool:
    return layout.is_lazy and not layout.dtype.is_complex


# DLPack's codes of devices.
DEVICES = {"cpu": 1, "cuda": 2, "mps": 8, "xpu": 14}


def dlpack_facts(tensor: Tensor) -> tuple[int, ...] | None:
    """What DLPack would say of a tensor, for a torch before 2.10, whose DLPack C++ cannot ask: its
    address, the code and the index of its device, the code and the bits of its dtype. None if it
    has no memory that can be watched."""
    device, dtype = tensor.device, tensor.dtype
    if tensor.layout != torch.strided or device.type not in DEVICES:
        return None
    bits = 8 * dtype.itemsize
    return tensor.data_ptr(), DEVICES[device.type], device.index or 0, _code(dtype), bits


# What C++ can ask about tensors: the first that it understands.
SOURCES = tuple(
    source
    for source in (getattr(Tensor, "__dlpack_c_exchange_api__", None), dlpack_facts)
    if source is not None
)


def _can_watch() -> bool:
    """Whether C++ can read tensor headers in memory. The first call lets it learn how."""
    if native.module.can_watch():
        return True
    if not hasattr(torch, "_lazy_clone"):
        return False
    with torch.no_grad(), _disable_current_modes():
        return any(native.module.learn_to_watch(source, samples()) for source in SOURCES)


def _can_look_into(param_lists: ParamLists) -> bool:
    """Whether C++ can find the local tensors of these parameters, if they are DTensors."""
    others = [p for params in param_lists for p in params if type(p) not in shards.PLAIN]
    if not any(map(shards.is_dtensor, others)):
        return True
    from torch.distributed.tensor import DTensor

    return bool(native.module.learn_dtensors(DTensor, Tensor, shards.local))


def samples() -> list[tuple[Any, ...]]:
    """Tensors with many sizes, strides, dtypes, flags and gradients, for C++ to learn from. Each
    comes with the addresses of its C++ object, its storage and its data; whether it is negated,
    conjugated, and lazy (copied on its first write); its sizes and strides; and a number that is
    equal for tensors that are alike."""
    tensors: list[Tensor] = []
    for shape in ((), (3,), (2, 3), (3, 2), (1, 2, 3, 1), (1, 2, 1, 1, 3), (1, 2, 1, 1, 1, 3)):
        for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.int32, torch.complex64):
            tensors.append(torch.zeros(shape, dtype=dtype, device="cpu"))
        pairs = torch.zeros(2, *shape, dtype=torch.complex64, device="cpu")
        for part in pairs:
            negated = part.conj().imag
            dense = negated.as_strided(shape, tensors[-1].stride())
            tensors += [part, part.real, part.imag, part.conj(), negated, dense, dense.conj()]
            tensors.append(torch.nn.Parameter(part.real))
            tensors[-1].grad = part.real.clone()
            tensors.append(torch.nn.Parameter(part.real))
            tensors[-1].data = dense
    table = torch.zeros(4, 6, device="cpu")
    tensors += [table, table.t(), table[1:3], table[:2], table[:, 2:4], table[0], table[1:2, :1]]
    tensors += [table[0, :1].expand(3), torch.nn.Parameter(table), torch.empty(3, device="meta")]
    tensors += [torch.zeros(3, device="cpu"), torch.zeros(3, device="cpu", requires_grad=True)]
    for tensor in tensors[-2:]:
        tensor.grad = torch.zeros(3, device="cpu")
    found = [(tensor, tensor.untyped_storage().data_ptr(), False) for tensor in tensors]
    for _ in range(3):
        whole = torch.zeros(3, device="cpu")
        found.append((whole, whole.data_ptr(), True))
        tensors.append(torch._lazy_clone(whole))  # makes both lazy
    facts: dict[Any, int] = {}
    return [
        (
            tensor,
            tensor._cdata,
            tensor.untyped_storage()._cdata,
            data,
            tensor.is_neg(),
            tensor.is_conj(),
            lazy,
            tuple(tensor.shape),
            tensor.stride(),
            facts.setdefault((_layout(tensor), tensor.storage_offset()), len(facts)),
        )
        for tensor, data, lazy in found
    ]


class PythonWatch:
    """The same without C++, or where C++ could not learn how tensors lie in memory. It is far
    slower."""

    def __init__(
        self,
        param_lists: ParamLists,
        state: dict[Tensor, dict[str, Any]],
        keys: tuple[str, ...],
        cells: list[int],
        earlier: Earlier = (),
    ) -> None:
        self.keys = keys
        self.cells = cells
        self.over = False
        self.fixed = self._look(param_lists, state)
        params = [param for params in param_lists for param in params]
        known = [*earlier, *[None] * (len(params) - len(earlier))]
        self.grads = [_Gradient(*pair) for pair in zip(params, known, strict=True)]

    def check(self, param_lists: ParamLists, state: dict[Tensor, dict[str, Any]]) -> int:
        self.over = self.over or self._look(param_lists, state) != self.fixed
        moved = came_or_went = 0
        if not self.over:
            params = (param for params in param_lists for param in params)
            for param, seen, cell in zip(params, self.grads, self.cells, strict=True):
                was_there, before = seen.is_there, seen.address
                if not seen.follow(param.grad):
                    self.over = True
                    break
                if was_there != seen.is_there:
                    came_or_went = CAME_OR_WENT
                elif seen.address == before:
                    continue
                elif cell:
                    moved += 1
                if cell:
                    address = seen.address if seen.is_there else 0
                    ctypes.c_int64.from_address(cell).value = address
        return -1 if self.over else moved + came_or_went

    def present(self) -> bytes:
        return bytes(seen.is_there for seen in self.grads)

    def _look(self, param_lists: ParamLists, state: dict[Tensor, dict[str, Any]]) -> list[Any]:
        """Everything that must not change: all except the gradients."""
        fixed: list[Any] = [len(param_lists)]
        for params in param_lists:
            fixed.append(len(params))
            for param in params:
                own = shards.local(param)
                fixed += (id(param), id(own), _address_of_plain(own), _layout(param))
        for key, values in state.items():
            if not isinstance(values, dict):  # something that the user put there
                fixed.append(id(key))
                continue
            fixed += (id(key), id(values), len(values))
            for name in self.keys:
                value = values.get(name)
                fixed.append(id(value))
                if isinstance(value, Tensor):
                    own = shards.local(value)
                    fixed += (id(own), _address_of_plain(own), _layout(value))
        return fixed


class _Gradient:
    """The gradient of one parameter: its layout, if known, and its last address."""

    def __init__(self, param: Tensor, earlier: Layout | None) -> None:
        grad = param.grad
        self.is_there = grad is not None
        self.layout: tuple[Any, ...] | None = None
        self.address = 0
        if grad is not None:
            self.layout = _layout(grad)
            self.address = _address(grad)
        elif earlier is not None:
            own = shards.local(param)
            facts = (own.shape, earlier.strides, earlier.dtype, own.device)
            self.layout = (*facts, _is_negated(earlier), False)
            if shards.is_dtensor(param):
                self.layout = (param.placements, param.device_mesh, *self.layout)  # type: ignore[attr-defined]
            # Any address that is a multiple of 16: plans take an absent gradient for aligned.
            self.address = 16 if own.numel() or own is not param else 0

    def follow(self, grad: Tensor | None) -> bool:
        """Takes the gradient's new address. False if the plan does not hold any more."""
        self.is_there = grad is not None
        if grad is None:
            return True
        if self.layout is None or _layout(grad) != self.layout:
            return False
        before, self.address = self.address, _address(grad)
        changed = self.address != before
        return not (changed and (self.address == 0 or (self.address ^ before) & 15))


def _address(grad: Tensor) -> int:
    if shards.is_dtensor(grad):
        return shards.address_of(shards.local(grad))
    return _address_of_plain(grad)


def _address_of_plain(tensor: Tensor) -> int:
    """0 for a sparse tensor, which has no address; `data_ptr` would raise."""
    return tensor.data_ptr() if tensor.layout == torch.strided else 0


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    if shards.is_dtensor(tensor):
        spread = (tensor.placements, tensor.device_mesh)  # type: ignore[attr-defined]
        return (*spread, *_layout(shards.local(tensor)))
    if tensor.layout != torch.strided:
        return (tensor.layout, tensor.dtype)
    facts = (tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
    return (*facts, tensor.is_neg(), tensor.is_conj())
