"""The kernel of a rule without sums: one program walks one chunk of a tensor.

The table has a row for each tensor: the addresses of its slots, then its number of elements. A full
chunk has no mask. So the compiler uses 128-bit accesses for any number of elements.
"""

import triton
import triton.language as tl

from .numbers import round_to_storage


@triton.jit
def elementwise(
    chunks,  # (tensor, chunk of it) for each program
    table,
    scalar_row_of,  # each tensor's row of scalars
    scalars,
    controls,  # inverse gradient scale, found_inf
    UPDATE: tl.constexpr,
    CFG: tl.constexpr,
):
    SLOTS: tl.constexpr = len(CFG.DTYPES)
    SCALARS: tl.constexpr = CFG.SCALARS
    program = tl.program_id(0).to(tl.int64)
    tensor = tl.load(chunks + 2 * program).to(tl.int64)
    start = tl.load(chunks + 2 * program + 1).to(tl.int64) * CFG.CHUNK
    table_row = table + tensor * (SLOTS + 1)
    count = tl.load(table_row + SLOTS)
    row = scalars + tl.load(scalar_row_of + tensor) * (2 + SCALARS)
    grad_scale = tl.load(controls).to(CFG.T) * tl.load(row).to(CFG.T)
    values = ()
    for k in tl.static_range(SCALARS):
        values = values + (tl.load(row + 1 + k).to(CFG.T),)
    slots = ()
    for k in tl.static_range(SLOTS):
        slot = tl.load(table_row + k).to(tl.pointer_type(CFG.DTYPES[k]))
        if CFG.ALIGNED:
            slot = tl.multiple_of(slot, 16)
        slots = slots + (slot,)
    # Without a gradient in this step its cell is 0, and the tensor is left alone.
    present = tl.load(table_row + 1) != 0
    if present & (tl.load(controls + 1) == 0):
        if start + CFG.CHUNK <= count:
            for at in range(0, CFG.CHUNK, CFG.BLOCK):
                i = start + at + tl.arange(0, CFG.BLOCK)
                _step(slots, i, None, grad_scale, values, UPDATE, CFG)
        else:
            for at in range(0, (count - start).to(tl.int32), CFG.BLOCK):
                i = start + at + tl.arange(0, CFG.BLOCK)
                _step(slots, i, i < count, grad_scale, values, UPDATE, CFG)


@triton.jit
def _step(slots, i, mask, grad_scale, values, UPDATE: tl.constexpr, CFG: tl.constexpr):
    SLOTS: tl.constexpr = len(CFG.DTYPES)
    numbers = ()
    for k in tl.static_range(SLOTS):
        number = tl.load(slots[k] + i, mask).to(CFG.T)
        if k == 1:
            number = number * grad_scale
        numbers = numbers + (number,)
    results = UPDATE(*numbers, *values)
    for k in tl.static_range(SLOTS):
        if k != 1:  # not the gradient
            tl.store(slots[k] + i, round_to_storage(results[k - (k > 1)], CFG.DTYPES[k]), mask)
