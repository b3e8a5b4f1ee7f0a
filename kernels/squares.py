"""The kernel for the norm of the gradients: one program adds up the squares of a part of one.

A square may be too large or too small for float32, and float64 is slow on some GPUs. So large and
small numbers are scaled by different powers of two, then squared and added up apart: at most 16 of
them by a lane, which is below 2^125. A number below 2^-113 (1e-34) loses digits, one below 2^-125
counts as 0.
"""

import triton
import triton.language as tl

LARGE = tl.constexpr(2.0**10)
OF_LARGE = tl.constexpr(2.0**-70)
OF_SMALL = tl.constexpr(2.0**50)


@triton.jit
def gradient_squares(
    entries,  # (tensor, unit) for each program
    table,
    elements,  # of each gradient
    sums,  # one for each program
    CFG: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    tensor = tl.load(entries + 2 * program).to(tl.int64)
    start = tl.load(entries + 2 * program + 1).to(tl.int64) * CFG.CHUNK
    address = tl.load(table + tensor * CFG.FIELDS + 1)
    large = tl.full((CFG.BLOCK,), 0.0, CFG.T)
    small = tl.full((CFG.BLOCK,), 0.0, CFG.T)
    if address != 0:  # else there is no gradient in this step
        count = tl.load(elements + tensor)
        if (address % 16 == 0) & (start + CFG.CHUNK <= count):
            g_at = tl.multiple_of(address.to(tl.pointer_type(CFG.DTYPES[0])), 16)
            for at in range(0, CFG.CHUNK, CFG.BLOCK):
                g = tl.load(g_at + start + at + tl.arange(0, CFG.BLOCK))
                large, small = add(large, small, g, CFG)
        else:
            g_at = address.to(tl.pointer_type(CFG.DTYPES[0]))
            for at in range(0, tl.minimum(count - start, CFG.CHUNK).to(tl.int32), CFG.BLOCK):
                i = start + at + tl.arange(0, CFG.BLOCK)
                g = tl.load(g_at + i, i < count, other=0.0)
                large, small = add(large, small, g, CFG)
    if CFG.T == tl.float32:
        # In steps, so that no number of float32 overflows where sums are float32 too.
        both = large.to(CFG.W) * 2.0**70 * 2.0**70 + small.to(CFG.W) * 2.0**-50 * 2.0**-50
        tl.store(sums + program, tl.sum(both, 0))
    else:
        tl.store(sums + program, tl.sum(small, 0))


@triton.jit
def add(large, small, g, CFG: tl.constexpr):
    x = g.to(CFG.T)
    if CFG.T == tl.float32:
        is_large = tl.abs(x) > LARGE
        scaled = x * tl.where(is_large, OF_LARGE, OF_SMALL)
        square = scaled * scaled
        return large + tl.where(is_large, square, 0.0), small + tl.where(is_large, 0.0, square)
    else:
        return large, small + x * x
