"""Flat copies of tensors that cannot be walked in place: strided, expanded, transposed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class StagedCopy:
    """A flat copy of a tensor. `source` is a function, because a gradient may be another tensor at
    each step."""

    copy: Tensor
    source: Callable[[], Tensor]
    member: int  # the index in the bucket of the member that has the tensor
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
    """A complex tensor as pairs of real numbers, as in torch's optimizers. Others as they are."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill memory without gaps, in some order of the dimensions."""
    return (
        tensor.is_contiguous()
        or torch.empty_like(tensor, device="meta").stride() == tensor.stride()
    )
