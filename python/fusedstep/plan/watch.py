"""Tells whether what a plan was made from is still where it was, every step, at little cost."""

from __future__ import annotations

import ctypes
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .. import native

ParamLists = list[list[Tensor]]

CAME_OR_WENT = 1 << 40  # added to what `check` returns


class Watch(Protocol):
    """`check` returns the number of gradients that moved (their table cells were written), or -1 if
    anything else is not as it was: parameters, states, shapes, strides, dtypes, gradients come or
    gone. Then some cells may have been written, too."""

    def check(self, param_lists: ParamLists, state: dict[Tensor, dict[str, Any]]) -> int: ...


def watch(
    param_lists: ParamLists,
    state: dict[Tensor, dict[str, Any]],
    keys: tuple[str, ...],
    cells: list[int],
) -> Watch:
    """Remembers parameters, gradients and the state tensors named by `keys`. `cells` holds for each
    parameter the address of the table cell of its gradient, or 0. The caller keeps parameters and
    state dicts alive."""
    if native.module is not None and _can_watch():
        return native.module.Watch(EXCHANGE, param_lists, state, keys, cells)
    return PythonWatch(param_lists, state, keys, cells)


EXCHANGE = getattr(Tensor, "__dlpack_c_exchange_api__", None)


def _can_watch() -> bool:
    """Whether C++ can read tensors where they lie. It finds out once how they do."""
    if native.module.can_watch():
        return True
    if EXCHANGE is None or not hasattr(torch, "_lazy_clone"):
        return False
    with torch.no_grad(), _disable_current_modes():
        return bool(native.module.learn_to_watch(EXCHANGE, samples()))


def samples() -> list[tuple[Any, ...]]:
    """Tensors of all kinds of sizes, strides, dtypes and flags. With each the addresses of its C++
    object, of its storage and of the data; whether it is negated, conjugated, and copied only when
    it is written; its number of dimensions, and a number that stands for all its facts."""
    tensors: list[Tensor] = []
    for shape in ((), (3,), (2, 3), (3, 2), (1, 2, 3, 1), (1, 2, 1, 1, 3), (1,) * 6):
        for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.int32, torch.complex64):
            tensors.append(torch.zeros(shape, dtype=dtype, device="cpu"))
        pairs = torch.zeros(2, *shape, dtype=torch.complex64, device="cpu")
        for part in pairs:
            negated = part.conj().imag
            dense = negated.as_strided(shape, tensors[-1].stride())
            tensors += [part, part.real, part.imag, part.conj(), negated, dense, dense.conj()]
            tensors.append(torch.nn.Parameter(part.real))
            tensors.append(torch.nn.Parameter(part.real))
            tensors[-1].data = dense
    table = torch.zeros(4, 6, device="cpu")
    tensors += [table, table.t(), table[1:3], table[:2], table[:, 2:4], table[0], table[1:2, :1]]
    tensors += [table[0, :1].expand(3), torch.nn.Parameter(table), torch.empty(3, device="meta")]
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
            tensor.dim(),
            facts.setdefault((_layout(tensor), tensor.storage_offset()), len(facts)),
        )
        for tensor, data, lazy in found
    ]


class PythonWatch:
    """The same without C++ or with a torch older than 2.10: right, but five times slower."""

    def __init__(
        self,
        param_lists: ParamLists,
        state: dict[Tensor, dict[str, Any]],
        keys: tuple[str, ...],
        cells: list[int],
    ) -> None:
        self.keys = keys
        self.cells = cells
        self.fixed, self.grads = self._look(param_lists, state)

    def check(self, param_lists: ParamLists, state: dict[Tensor, dict[str, Any]]) -> int:
        fixed, grads = self._look(param_lists, state)
        if fixed != self.fixed or any(
            a != b and (a == 0 or (a ^ b) & 15) for a, b in zip(grads, self.grads, strict=True)
        ):
            return -1
        moved = 0
        for address, seen, cell in zip(grads, self.grads, self.cells, strict=True):
            if address != seen and cell:
                ctypes.c_int64.from_address(cell).value = address
                moved += 1
        self.grads = grads
        return moved

    def _look(
        self, param_lists: ParamLists, state: dict[Tensor, dict[str, Any]]
    ) -> tuple[list[Any], list[int]]:
        fixed: list[Any] = [len(param_lists)]
        grads: list[int] = []
        for params in param_lists:
            fixed.append(len(params))
            for param in params:
                grad = param.grad
                fixed += (id(param), param.data_ptr(), _layout(param))
                fixed.append(None if grad is None else _layout(grad))
                grads.append(0 if grad is None or grad.layout != torch.strided else grad.data_ptr())
        for key, values in state.items():
            if not isinstance(values, dict):  # something of the user's own
                fixed.append(id(key))
                continue
            fixed += (id(key), id(values), len(values))
            for name in self.keys:
                value = values.get(name)
                fixed.append(id(value))
                if isinstance(value, Tensor):
                    fixed += (value.data_ptr(), _layout(value))
        return fixed, grads


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    if tensor.layout != torch.strided:
        return (tensor.layout, tensor.dtype)
    facts = (tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
    return (*facts, tensor.is_neg(), tensor.is_conj())
