"""Flat copies of tensors that cannot be walked as they lie: strided, expanded, transposed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Stage:
    """A flat copy of a tensor. `source` finds the tensor anew, since gradients come and go."""

    copy: Tensor
    source: Callable[[], Tensor]
    written: bool

    def copy_in(self) -> None:
        self.copy.copy_(self.source())

    def copy_out(self) -> None:
        if self.written:
            self.source().copy_(self.copy)


def real(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of reals, as torch's optimizers treat it."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill their memory without gaps, in some order of dimensions."""
    return torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def plain_strides(shape: torch.Size) -> tuple[int, ...]:
    """The strides of a contiguous tensor."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def has_order(tensor: Tensor, strides: tuple[int, ...]) -> bool:
    """Whether the elements lie as `strides` say. A dimension of size 1 may have any stride."""
    return all(
        size == 1 or own == want
        for size, own, want in zip(tensor.shape, tensor.stride(), strides, strict=True)
    )


def flat_copy(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Room for the tensor's elements, in another order."""
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device)
