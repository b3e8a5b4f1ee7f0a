"""Numbers as they are stored in other ways than in a dtype (`plan/storage.py`), and back, with
torch's operations."""

from __future__ import annotations

import torch
from torch import Tensor

from .rules.layout import SCALED_BLOCK

LOWEST = {torch.int16: 0, torch.int8: 8}  # the lowest bit of a float32 that a rest has, by dtype
BEND = 0x1FC00000  # so that 1 is bent to 1
LEAST_BENT = 1.5 * 2.0**-64  # of 0
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
    """The float32 numbers of codes, a row for each scale: code bent(scale) / levels, unbent. With a
    scale that is not finite they are nan."""
    own = codes.to(torch.float32) * (bent(scales) * (1.0 / LEVELS[codes.dtype]))
    return torch.where(scales < torch.inf, unbent(own.abs()).copysign(own), torch.nan)


def to_blocks(numbers: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes of rows of float32 numbers, and their scales: scale = max |x|, and
    code = levels bent(|x|) / bent(scale) with the sign of x. If codes have no sign, only 0 has the
    code 0. If a scale is not finite, its codes are 0."""
    sizes = numbers.abs()
    scales = sizes.amax(1, keepdim=True)
    is_usual = (scales > 0.0) & (scales < torch.inf)
    # torch computes number / tensor as number * (1 / tensor), rounded twice.
    factors = torch.full_like(scales, LEVELS[dtype]) / bent(scales)
    codes = (bent(sizes) * factors).round()
    if dtype == torch.uint8:
        codes = torch.where(sizes > 0.0, codes.clamp(min=1.0), codes)
    else:
        codes = codes.copysign(numbers)
    return torch.where(is_usual, codes, 0.0).to(dtype), scales


def bent(x: Tensor) -> Tensor:
    """Numbers of 0 or more, bent: the bits of a float32 are about its logarithm, so half of them
    are a number close to its root, and small numbers get finer codes. Both directions are exact,
    but for the last bit."""
    return ((x.view(torch.int32) >> 1) + BEND).view(torch.float32)


def unbent(y: Tensor) -> Tensor:
    """The inverse of `bent`. What is bent to less than 0 is, is 0."""
    return ((y.clamp(min=LEAST_BENT).view(torch.int32) - BEND) << 1).view(torch.float32)


def in_blocks(numbers: Tensor) -> Tensor:
    """A dense tensor as rows of numbers that share a scale, in the order of memory."""
    return numbers.as_strided((numbers.numel(),), (1,)).view(-1, SCALED_BLOCK)
