"""How the plain torch backend reads and writes the slots of a member: see `plan/storage.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..plan.bucket import Bucket
from ..rules import layout, noise
from ..stored_numbers import from_blocks, in_blocks, join, rounded_by, split, to_blocks


class StoredSlot:
    """One slot of a member: its tensor, and its companion if it has one."""

    def __init__(self, bucket: Bucket, index: int, slot: int, tensors: Sequence[Tensor]) -> None:
        self.bucket, self.index, self.slot = bucket, index, slot
        self.code = bucket.storage.codes[slot]
        self.tensor = tensors[slot]
        place = bucket.storage.companions[slot]
        self.companion = tensors[place] if place else None

    def numbers(self) -> Tensor:
        """The numbers, as they are stored or in float32."""
        own, more = self.tensor, self.companion
        if more is None:
            return own
        if self.code == layout.COPIED_FLOAT16:
            return more
        if self.code in (layout.REST16, layout.REST8):
            return join(own, more)
        return _like(own, from_blocks(in_blocks(own), more.reshape(-1, 1)))

    def stored(self, new: Tensor, step: Any) -> list[tuple[Tensor, Tensor]]:
        """What to write for the numbers `new`: pairs of a tensor and new contents. Noise depends
        on `step`, the number of the step."""
        own, more = self.tensor, self.companion
        if self.code == layout.NOISY_BFLOAT16:
            return [(own, rounded_by(new.to(torch.float32), self._noise(step)))]
        if more is None:
            return [(own, new.to(own.dtype))]
        if self.code == layout.COPIED_FLOAT16:
            return [(own, new.to(own.dtype)), (more, new)]
        if self.code in (layout.REST16, layout.REST8):
            return list(zip((own, more), split(new, more.dtype), strict=True))
        dense = torch.empty_like(own, dtype=torch.float32).copy_(new)
        codes, scales = to_blocks(in_blocks(dense), own.dtype)
        return [(own, _like(own, codes)), (more, scales.view(more.shape))]

    def _noise(self, step: Any) -> Tensor:
        """16 bits for each number of the slot."""
        assert self.bucket.noise is not None
        key, first, cols, row_stride, rows, matrix_stride = self.bucket.noise[self.index].tolist()
        local = torch.arange(self.tensor.numel(), device=self.tensor.device)
        row = local // cols
        matrix = row // rows
        place = first + matrix * matrix_stride + (row - matrix * rows) * row_stride
        place = place + (local - row * cols)
        step = step.to(torch.int64) if isinstance(step, Tensor) else int(step)
        first_key = noise.step_key(key & 0xFFFFFFFF, step)
        second_key = noise.second_key(key >> 32 & 0xFFFFFFFF, first_key)
        multiplier = noise.MULTIPLIERS[self.slot]
        return _like(self.tensor, noise.noise(place, first_key, second_key, multiplier))


def slots_of(bucket: Bucket, index: int, tensors: Sequence[Tensor]) -> list[StoredSlot]:
    """All slots of a rule."""
    return [StoredSlot(bucket, index, slot, tensors) for slot in range(len(bucket.storage.codes))]


def _like(own: Tensor, numbers: Tensor) -> Tensor:
    """Numbers in the order of memory, with the shape of `own`."""
    return numbers.reshape(-1).as_strided(own.shape, own.stride())
