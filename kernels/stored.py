"""How the numbers of a slot are loaded and stored: in the dtype of their tensor, or otherwise, as
`fusedstep.plan.storage` tells. `fusedstep.stored_numbers` has the formulas.

A slot is a pair of addresses: of its tensor, and of its companion. Without a companion the second
is not used. Slots in the dtype of their tensor cost what a plain load and store do.
"""

import triton
import triton.language as tl

from fusedstep import stored_numbers
from fusedstep.rules import layout

from . import noise
from .numbers import div, round_to_storage

NOISY_BFLOAT16 = tl.constexpr(layout.NOISY_BFLOAT16)
REST16 = tl.constexpr(layout.REST16)
REST8 = tl.constexpr(layout.REST8)  # this and the one before are the rests
COPIED_FLOAT16 = tl.constexpr(layout.COPIED_FLOAT16)
BENT_INT8 = tl.constexpr(layout.BENT_INT8)  # this and the one after it have blocks
SCALED_BLOCK = tl.constexpr(layout.SCALED_BLOCK)

NAN = tl.constexpr(0x7FC00000)
INFINITY = tl.constexpr(0x7F800000)
BEND = tl.constexpr(stored_numbers.BEND)  # also the bits of what 0 is bent to at least
# 1.5 * 2^23. If it is added to a small number, the nearest integer is in the last bits.
LAST = tl.constexpr(12582912.0)
LAST_BITS = tl.constexpr(0x4B400000)


@triton.jit
def load_slot(slot, i, mask, other, block, block_ok, SLOT: tl.constexpr, CFG: tl.constexpr):
    """Numbers of a slot, in the compute dtype. Their scales, if they have some, are at `block`."""
    CODE: tl.constexpr = CFG.CODES[SLOT]
    own, beside = slot
    if CODE >= BENT_INT8:
        scales = tl.load(beside + block, block_ok, other)
        x = from_blocks(tl.load(own + i, mask, other), scales, CODE)
    elif CODE == COPIED_FLOAT16:
        x = tl.load(beside + i, mask, other)
    elif CODE >= REST16:
        x = join(tl.load(own + i, mask, other), tl.load(beside + i, mask, other), CODE)
    else:
        x = tl.load(own + i, mask, other)
    return x.to(CFG.T)


@triton.jit
def store_slot(slot, i, mask, x, of, place, block, block_ok, SLOT: tl.constexpr, CFG: tl.constexpr):
    """Stores numbers of the compute dtype. `of` and `place` are what noise depends on."""
    CODE: tl.constexpr = CFG.CODES[SLOT]
    own, beside = slot
    if CODE >= BENT_INT8:
        codes, scales = to_blocks(x, CODE)
        tl.store(own + i, codes, mask)
        tl.store(beside + block, scales, block_ok)
    elif CODE == COPIED_FLOAT16:
        tl.store(own + i, round_to_storage(x, CFG.DTYPES[SLOT]), mask)
        tl.store(beside + i, round_to_storage(x, tl.float32), mask)
    elif CODE >= REST16:
        high, rest = split(x, CODE)
        tl.store(own + i, high, mask)
        tl.store(beside + i, rest, mask)
    elif CODE == NOISY_BFLOAT16:
        tl.store(own + i, rounded_by(x, noise.bits(of, place, SLOT)), mask)
    else:
        tl.store(own + i, round_to_storage(x, CFG.DTYPES[SLOT]), mask)


@triton.jit
def moved_slot(slot, count):
    """The slot from a later element on."""
    return slot[0] + count, slot[1] + count


@triton.jit
def bits_of(x):
    """The bits of float32 numbers, where every nan is the same one."""
    x = x.to(tl.float32)
    return tl.where(x != x, NAN, x.to(tl.uint32, bitcast=True))


@triton.jit
def high_half(bits):
    return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def rounded_by(x, noise):
    """As bfloat16, rounded by 16 bits of noise. A finite number stays finite."""
    bits = bits_of(x)
    is_last = (bits & 0x7FFF0000) == 0x7F7F0000
    return high_half(tl.where(is_last, bits, bits + noise))


@triton.jit
def join(high, rest, CODE: tl.constexpr):
    """float32 numbers, from bfloat16 ones and rests with a sign."""
    low = rest.to(tl.int32)
    if CODE == REST8:
        low = low << 8
    bits = (high.to(tl.int16, bitcast=True).to(tl.int32) << 16) + low
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def split(x, CODE: tl.constexpr):
    """As bfloat16 numbers, rounded to nearest with ties away from zero, and rests."""
    bits = bits_of(x)
    if CODE == REST8:
        bits = (bits + 0x7F + ((bits >> 8) & 1)) & 0xFFFFFF00
        rest = (bits >> 8).to(tl.int8)
    else:
        rest = bits.to(tl.int16)
    return high_half(bits + 0x8000), rest


@triton.jit
def spread(of_block, like):
    """A number for each block, for each of its elements."""
    blocks: tl.constexpr = of_block.numel
    wide = tl.broadcast_to(of_block[:, None], (blocks, SCALED_BLOCK))
    return tl.reshape(wide, like.shape)


@triton.jit
def bent(bits):
    """A number of 0 or more, from its bits: close to its root."""
    return ((bits >> 1) + BEND).to(tl.float32, bitcast=True)


@triton.jit
def from_blocks(codes, scales, CODE: tl.constexpr):
    """float32 numbers, from codes and the scale of each block."""
    if CODE == BENT_INT8:
        unit = bent(scales.to(tl.int32, bitcast=True)) * (1.0 / 127.0)
    else:
        unit = bent(scales.to(tl.int32, bitcast=True)) * (1.0 / 255.0)
    bits = (codes.to(tl.float32) * spread(unit, codes)).to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    number = (tl.maximum(size, BEND) - BEND) << 1
    if CODE == BENT_INT8:
        number = number | (bits ^ size)
    is_finite = spread(scales < float("inf"), codes)
    return tl.where(is_finite, number, NAN).to(tl.float32, bitcast=True)


@triton.jit
def to_blocks(x, CODE: tl.constexpr):
    """Codes of float32 numbers, and the scale of each block: its largest number. That is nan if any
    is. If it is not finite, the codes are 0."""
    bits = x.to(tl.float32).to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    blocks: tl.constexpr = size.numel // SCALED_BLOCK
    largest = tl.max(tl.reshape(size, (blocks, SCALED_BLOCK)), 1)
    is_usual = (largest > 0) & (largest < INFINITY)
    root = bent(largest)
    if CODE == BENT_INT8:
        factor = tl.where(is_usual, div(127.0, root), 0.0)
        level = (bent(size) * spread(factor, size)).to(tl.int32, bitcast=True) | (bits ^ size)
        codes = (level.to(tl.float32, bitcast=True) + LAST).to(tl.int32, bitcast=True).to(tl.int8)
    else:
        factor = tl.where(is_usual, div(255.0, root), 0.0)
        level = bent(size) * spread(factor, size) + LAST
        # Only 0 has the code 0.
        least = tl.minimum(size, spread(is_usual.to(tl.int32), size))
        codes = tl.maximum(level.to(tl.int32, bitcast=True) - LAST_BITS, least).to(tl.uint8)
    return codes, largest.to(tl.float32, bitcast=True)
