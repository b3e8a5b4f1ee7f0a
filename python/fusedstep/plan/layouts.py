"""How tensors lie in memory. To look at a tensor costs more than all else that is done with it when
a plan is made, so each is looked at once, and tensors that lie alike share what was found."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Layout:
    """All about a tensor's memory but its address. Layouts are compared by identity.

    Attributes:
        is_lazy: whether its numbers are to be read as negated or conjugate ones.
        is_plain: whether it is contiguous, and its numbers are those in memory.
        is_float: whether they are real numbers of a dtype that every backend takes.
        extent: bytes from the first element to the end of the last one, gaps included.
    """

    __slots__ = (
        "count", "device", "dtype", "extent", "is_float", "is_lazy", "is_plain", "shape", "strides",
    )  # fmt: skip

    def __init__(
        self,
        dtype: torch.dtype,
        device: torch.device,
        shape: torch.Size,
        strides: tuple[int, ...],
        is_negated: bool,
    ) -> None:
        self.dtype = dtype
        self.device = device
        self.shape = shape
        self.strides = strides
        self.count = math.prod(shape)
        self.is_lazy = is_negated or dtype.is_complex
        self.is_float = dtype in FLOATS
        self.is_plain = not self.is_lazy and same_order(shape, strides, plain_strides(shape))
        gaps = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        self.extent = (1 + gaps) * dtype.itemsize if self.count else 0

    def is_of(self, tensor: Tensor) -> bool:
        """Whether a tensor lies so."""
        return (
            self.is_plain
            and tensor.shape == self.shape
            and tensor.stride() == self.strides
            and tensor.dtype == self.dtype
            and tensor.device == self.device
            and not tensor.is_neg()
        )


class Layouts:
    """The layouts of many tensors, each kept once."""

    def __init__(self) -> None:
        self._known: dict[object, Layout] = {}

    def of(self, tensor: Tensor) -> Layout:
        key = (tensor.dtype, tensor.device, tensor.shape, tensor.stride(), tensor.is_neg())
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = Layout(*key)
        return found


def plain_strides(shape: torch.Size) -> tuple[int, ...]:
    """The strides of a contiguous tensor."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def same_order(shape: Sequence[int], strides: Sequence[int], others: Sequence[int]) -> bool:
    """Whether strides mean the same order of elements. In a dimension of size 1 any stride does."""
    return strides == others or all(
        size == 1 or own == other for size, own, other in zip(shape, strides, others, strict=True)
    )
