"""The named operations of rule texts in Triton, exact, and how numbers are stored.

Nothing may be fused or approximated, so every launch passes `enable_fp_fusion=False`. Triton's
plain division and square root are approximate in float32, exact in float64.
"""

import triton
import triton.language as tl

from fusedstep.gpu.interpreter import is_interpreted

INTERPRETED = tl.constexpr(is_interpreted())


@triton.jit
def sqrt(x):
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@triton.jit
def div(a, b):
    if b.dtype == tl.float32:
        return tl.div_rn(a, b)
    else:
        return a / b


@triton.jit
def maximum(a, b):
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def minimum(a, b):
    return tl.where((a < b) | (a != a), a, b)


@triton.jit
def where(condition, a, b):
    return tl.where(condition, a, b)


@triton.jit
def where_in_float64(condition, a, b):
    """`where` for float64: two literals would be float32. The compiler removes the factor."""
    one = tl.full((), 1.0, tl.float64)
    return tl.where(condition, one * a, one * b)


@triton.jit
def round_to_storage(x, dtype: tl.constexpr):
    """Rounds `x` as torch does: to float32, then to the nearest `dtype`, ties to even. Triton's
    interpreter truncates to bfloat16, so there it is rounded in integers."""
    if dtype == tl.float64:
        return x.to(tl.float64)
    elif dtype == tl.bfloat16 and INTERPRETED:
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        high = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        high = tl.where(x != x, 0x7FC0, high)
        return high.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(tl.float32).to(dtype)
