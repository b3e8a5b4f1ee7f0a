"""Flat copies of tensors that cannot be walked as they lie: strided, expanded, transposed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class GradientLayout(NamedTuple):
    """How a gradient lies: all that a plan knows of one that is absent for a while."""

    dtype: torch.dtype
    strides: tuple[int, ...]
    lazy: bool  # its numbers are to be read as negated or conjugate ones

    @classmethod
    def of(cls, grad: Tensor) -> GradientLayout:
        return cls(grad.dtype, grad.stride(), grad.is_neg() or grad.is_complex())


@dataclass
class Stage:
    """A flat copy of a tensor. `source` finds the tensor anew, since gradients come and go."""

    copy: Tensor
    source: Callable[[], Tensor]
    member: int  # whose tensor it is, in the bucket
    slot: int
    present: bool = True  # whether the member takes part in the step

    @property
    def is_gradient(self) -> bool:
        return self.slot == 1

    def copy_in(self) -> None:
        if self.present:
            self.copy.copy_(self.source())

    def copy_out(self) -> None:
        if self.present and not self.is_gradient:
            self.source().copy_(self.copy)


def real(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of reals, as torch's optimizers treat it."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill their memory without gaps, in some order of dimensions."""
    return (
        tensor.is_contiguous()
        or torch.empty_like(tensor, device="meta").stride() == tensor.stride()
    )


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
