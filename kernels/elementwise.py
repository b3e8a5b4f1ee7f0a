"""Walks a rule without sums over a list of tensors: one program for each chunk of a tensor.

The table has a row for each tensor: the addresses of its slots, then its number of elements. A
chunk that lies whole in its tensor is walked without a mask, which is what lets the compiler use
128-bit accesses whatever the number of elements.
"""

import triton
import triton.language as tl

from .numbers import rounded


@triton.jit
def elementwise(
    chunks,  # (tensor, chunk of it) for each program
    table,
    row_of,  # of each tensor, its row of scalars
    scalars,
    controls,  # inverse gradient scale, found_inf
    UPDATE: tl.constexpr,
    DTYPES: tl.constexpr,  # of the slots: parameter, gradient, states
    COMPUTE: tl.constexpr,
    SCALARS: tl.constexpr,  # how many the rule takes
    ALIGNED: tl.constexpr,  # every address is a multiple of 16 bytes
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    tensor = tl.load(chunks + 2 * program).to(tl.int64)
    start = tl.load(chunks + 2 * program + 1).to(tl.int64) * CHUNK
    cells = table + tensor * (len(DTYPES) + 1)
    count = tl.load(cells + len(DTYPES))
    row = scalars + tl.load(row_of + tensor) * (1 + SCALARS)
    grad_scale = tl.load(controls).to(COMPUTE) * tl.load(row).to(COMPUTE)
    values = ()
    for k in tl.static_range(SCALARS):
        values = values + (tl.load(row + 1 + k).to(COMPUTE),)
    slots = ()
    for k in tl.static_range(len(DTYPES)):
        slot = tl.load(cells + k).to(tl.pointer_type(DTYPES[k]))
        if ALIGNED:
            slot = tl.multiple_of(slot, 16)
        slots = slots + (slot,)
    if tl.load(controls + 1) == 0:
        if start + CHUNK <= count:
            for at in range(0, CHUNK, BLOCK):
                i = start + at + tl.arange(0, BLOCK)
                _step(slots, i, None, grad_scale, values, UPDATE, DTYPES, COMPUTE)
        else:
            for at in range(0, (count - start).to(tl.int32), BLOCK):
                i = start + at + tl.arange(0, BLOCK)
                _step(slots, i, i < count, grad_scale, values, UPDATE, DTYPES, COMPUTE)


@triton.jit
def _step(
    slots,
    i,
    mask,
    grad_scale,
    values,
    UPDATE: tl.constexpr,
    DTYPES: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    numbers = ()
    for k in tl.static_range(len(DTYPES)):
        number = tl.load(slots[k] + i, mask).to(COMPUTE)
        if k == 1:
            number = number * grad_scale
        numbers = numbers + (number,)
    results = UPDATE(*numbers, *values)
    for k in tl.static_range(len(DTYPES)):
        if k != 1:  # the gradient is left alone
            tl.store(slots[k] + i, rounded(results[k - (k > 1)], DTYPES[k]), mask)
