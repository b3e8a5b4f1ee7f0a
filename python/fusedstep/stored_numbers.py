"""Numbers as they are stored in other ways than in a dtype (`plan/storage.py`), and back, with
torch's operations."""

from __future__ import annotations

import torch
from torch import Tensor

from .operations import sqrt
from .rules.layout import SCALED_BLOCK

LOWEST = {torch.int16: 0, torch.int8: 8}  # the lowest bit of a float32 that a rest has, by dtype
LEVELS = {torch.int8: 127.0, torch.uint8: 255.0}  # the largest codes


def join(high: Tensor, rest: Tensor) -> Tensor:
    """The float32 numbers of bfloat16 ones and their rests."""
    low = rest.to(torch.int32) << LOWEST[rest.dtype]
    return ((high.view(torch.int16).to(torch.int32) << 16) + low).view(torch.float32)


def split(numbers: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """float32 numbers as bfloat16 ones, rounded to nearest with ties away from zero, and as rests
    of `dtype`. If these have 8 bits, numbers are first rounded to 24, ties to even. Every nan
    becomes the same one, without a rest."""
    bits = torch.where(numbers.isnan(), torch.nan, numbers).view(torch.int32)
    lowest = LOWEST[dtype]
    if lowest:
        bits = (bits + (1 << lowest - 1) - 1 + (bits >> lowest & 1)) >> lowest << lowest
    low = bits.to(torch.int16)
    high = (bits - low) >> 16
    return high.to(torch.int16).view(torch.bfloat16), (low >> lowest).to(dtype)


def rounded_by(numbers: Tensor, noise: Tensor) -> Tensor:
    """float32 numbers as bfloat16: 16 bits of noise are added to the low half before it is cut off.
    A finite number stays finite."""
    bits = torch.where(numbers.isnan(), torch.nan, numbers).view(torch.int32)
    is_last = (bits & 0x7FFF0000) == 0x7F7F0000
    high = torch.where(is_last, bits, bits + noise.to(torch.int32)) >> 16
    return high.to(torch.int16).view(torch.bfloat16)


def from_blocks(codes: Tensor, scales: Tensor) -> Tensor:
    """The float32 numbers of codes, a row for each scale: +-r^2, where r = scale code / levels."""
    roots = scales * (codes.to(torch.float32) * (1.0 / LEVELS[codes.dtype]))
    return roots * roots.abs()


def to_blocks(numbers: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes of rows of float32 numbers, and their scales: r = sqrt(|x|), scale = max r, and
    code = levels r / scale with the sign of x. A number above 0 never has the code 0 if codes have
    no sign. If a scale is not finite, its codes are 0, and they are read as nan."""
    roots = sqrt(numbers.abs())
    scales = roots.amax(1, keepdim=True)
    is_usual = (scales > 0.0) & (scales < torch.inf)
    # torch computes number / tensor as number * (1 / tensor), rounded twice.
    factors = torch.full_like(scales, LEVELS[dtype]) / scales
    codes = (roots * factors).round().copysign(numbers)
    if dtype == torch.uint8:
        codes = torch.where(numbers > 0.0, codes.clamp(min=1.0), codes)
    return torch.where(is_usual, codes, 0.0).to(dtype), scales


def in_blocks(numbers: Tensor) -> Tensor:
    """A dense tensor as rows of numbers that share a scale, in the order of memory."""
    return numbers.as_strided((numbers.numel(),), (1,)).view(-1, SCALED_BLOCK)
