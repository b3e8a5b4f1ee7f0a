"""How tensors lie in memory: shape, strides, dtype, device. Reading these from a tensor is the
largest cost of making a plan, so each is read once, and tensors that lie alike share a `Layout`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Layout:
    """How a tensor lies in memory, without its address. Layouts are compared by identity.

    Attributes:
        is_lazy: whether the numbers in memory must be negated or conjugated to read them.
        is_plain: whether it is contiguous and not lazy.
        is_float: whether every backend takes its dtype, which is real.
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
        """Whether a tensor has this layout. False for any layout that is not plain."""
        return (
            self.is_plain
            and tensor.shape == self.shape
            and tensor.stride() == self.strides
            and tensor.dtype == self.dtype
            and tensor.device == self.device
            and not tensor.is_neg()
        )


class Layouts:
    """Gives tensors with equal layouts the same `Layout`."""

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
    """Whether two strides give the same order of elements. The stride of a dimension of size 1 does
    not matter."""
    return strides == others or all(
        size == 1 or one == other for size, one, other in zip(shape, strides, others, strict=True)
    )
