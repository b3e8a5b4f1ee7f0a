"""Tells whether what a plan was made from is still where it was, every step, at little cost."""

from __future__ import annotations

import ctypes
from typing import Any, Protocol

import torch
from torch import Tensor

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
    exchange = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    if native.module is not None and exchange is not None and native.module.can_watch(exchange):
        return native.module.Watch(exchange, param_lists, state, keys, cells)
    return PythonWatch(param_lists, state, keys, cells)


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
    return (tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.is_neg())
