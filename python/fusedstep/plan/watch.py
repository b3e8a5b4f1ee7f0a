"""Tells whether what a plan was made from is still where it was, every step, at little cost."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .. import native
from .layouts import Layout

ParamLists = list[list[Tensor]]
Earlier = Sequence[Layout | None]

CAME_OR_WENT = 1 << 40  # added to what `check` returns


class Watch(Protocol):
    """`check` returns the number of gradients that moved, plus CAME_OR_WENT if some came or went.
    Cells of those are written: an address, or 0 for a gradient that went. It returns -1 if anything
    else is not as it was: parameters, states, shapes, strides, dtypes, a gradient that comes and
    was not known before, or comes back in another layout. Then some cells may have been written,
    too, and every later check returns -1.

    `present` says of each parameter, in the order of the lists, whether it had a gradient."""

    def check(self, param_lists: ParamLists, state: dict[Tensor, dict[str, Any]]) -> int: ...
    def present(self) -> bytes: ...


def watch(
    param_lists: ParamLists,
    state: dict[Tensor, dict[str, Any]],
    keys: tuple[str, ...],
    cells: list[int],
    earlier: Earlier = (),
) -> Watch:
    """Remembers parameters, gradients and the state tensors named by `keys`. `cells` holds for each
    parameter the address of the table cell of its gradient, or 0; `earlier` how its gradient lay
    when it was last seen, or None. The caller keeps parameters and state dicts alive."""
    if native.module is not None and _can_watch():
        known = {layout: layout and _in_native_form(layout) for layout in {*earlier}}
        layouts = [known[layout] for layout in earlier]
        return native.module.Watch(EXCHANGE, param_lists, state, keys, cells, layouts)
    return PythonWatch(param_lists, state, keys, cells, earlier)


def _in_native_form(layout: Layout) -> Any:
    """Its dtype as DLPack codes it, whether the gradient is negated, its strides."""
    code = 5 if layout.dtype.is_complex else 4 if layout.dtype == torch.bfloat16 else 2
    bits = 8 * layout.dtype.itemsize
    return native.module.Watch.Layout(code, bits, _is_negated(layout), layout.strides)


def _is_negated(layout: Layout) -> bool:
    return layout.is_lazy and not layout.dtype.is_complex


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
    """The same without C++ or with a torch older than 2.10: right, but ten times slower."""

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
        """All but the gradients."""
        fixed: list[Any] = [len(param_lists)]
        for params in param_lists:
            fixed.append(len(params))
            for param in params:
                fixed += (id(param), param.data_ptr(), _layout(param))
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
        return fixed


class _Gradient:
    """One parameter's gradient: its layout, if it is known, and where it was last."""

    def __init__(self, param: Tensor, earlier: Layout | None) -> None:
        grad = param.grad
        self.is_there = grad is not None
        self.layout: tuple[Any, ...] | None = None
        self.address = 0
        if grad is not None:
            self.layout = _layout(grad)
            self.address = _address(grad)
        elif earlier is not None:
            facts = (param.shape, earlier.strides, earlier.dtype, param.device)
            self.layout = (*facts, _is_negated(earlier), False)
            # Somewhere as aligned as plans take it for while it is absent.
            self.address = 16 if param.numel() else 0

    def follow(self, grad: Tensor | None) -> bool:
        """Whether a plan survives it."""
        self.is_there = grad is not None
        if grad is None:
            return True
        if self.layout is None or _layout(grad) != self.layout:
            return False
        before, self.address = self.address, _address(grad)
        changed = self.address != before
        return not (changed and (self.address == 0 or (self.address ^ before) & 15))


def _address(grad: Tensor) -> int:
    return grad.data_ptr() if grad.layout == torch.strided else 0


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    if tensor.layout != torch.strided:
        return (tensor.layout, tensor.dtype)
    facts = (tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
    return (*facts, tensor.is_neg(), tensor.is_conj())
