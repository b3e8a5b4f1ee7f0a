"""The kernel of a rule without sums: one program walks one chunk of a tensor.

The table has a row for each tensor: the addresses of its slots, then its number of elements. A full
chunk has no mask. So the compiler uses 128-bit accesses for any number of elements. With masks an
element is an access of its own, which takes many registers where a slot has a companion or noise:
there only the last, smaller tiles of a tensor have masks.
"""

import triton
import triton.language as tl

from . import noise
from .stored import SCALED_BLOCK, load_slot, store_slot


@triton.jit
def elementwise(
    chunks,  # (tensor, chunk of it) for each program
    table,
    scalar_row_of,  # each tensor's row of scalars
    scalars,
    controls,  # inverse gradient scale, found_inf
    noise_rows,  # one for each tensor, or None
    UPDATE: tl.constexpr,
    CFG: tl.constexpr,
):
    TENSORS: tl.constexpr = len(CFG.DTYPES)
    SCALARS: tl.constexpr = CFG.SCALARS
    program = tl.program_id(0).to(tl.int64)
    tensor = tl.load(chunks + 2 * program).to(tl.int64)
    start = tl.load(chunks + 2 * program + 1).to(tl.int64) * CFG.CHUNK
    table_row = table + tensor * (TENSORS + 1)
    count = tl.load(table_row + TENSORS)
    row = scalars + tl.load(scalar_row_of + tensor) * (2 + SCALARS)
    grad_scale = tl.load(controls).to(CFG.T) * tl.load(row).to(CFG.T)
    values = ()
    for k in tl.static_range(SCALARS):
        values = values + (tl.load(row + 1 + k).to(CFG.T),)
    tensors = ()
    for k in tl.static_range(TENSORS):
        tensor_at = tl.load(table_row + k).to(tl.pointer_type(CFG.DTYPES[k]))
        if CFG.ALIGNED:
            tensor_at = tl.multiple_of(tensor_at, 16)
        tensors = tensors + (tensor_at,)
    of = None
    if noise_rows is not None:
        of = noise.of_tensor(noise_rows, tensor, tl.load(row + 1 + SCALARS), count)
    # Without a gradient in this step its cell is 0, and the tensor is left alone.
    present = tl.load(table_row + 1) != 0
    if present & (tl.load(controls + 1) == 0):
        if CFG.TAIL == CFG.BLOCK:
            if start + CFG.CHUNK <= count:
                for at in range(0, CFG.CHUNK, CFG.BLOCK):
                    step(tensors, start + at, None, of, grad_scale, values, CFG.BLOCK, UPDATE, CFG)
            else:
                for at in range(0, (count - start).to(tl.int32), CFG.BLOCK):
                    step(tensors, start + at, count, of, grad_scale, values, CFG.BLOCK, UPDATE, CFG)
        else:
            left = tl.minimum(count - start, CFG.CHUNK).to(tl.int32)
            full = left // CFG.BLOCK * CFG.BLOCK
            for at in range(0, full, CFG.BLOCK):
                step(tensors, start + at, None, of, grad_scale, values, CFG.BLOCK, UPDATE, CFG)
            for at in range(full, left, CFG.TAIL):
                step(tensors, start + at, count, of, grad_scale, values, CFG.TAIL, UPDATE, CFG)


@triton.jit
def step(
    tensors,
    first,
    end,
    of,
    grad_scale,
    values,
    BLOCK: tl.constexpr,
    UPDATE: tl.constexpr,
    CFG: tl.constexpr,
):
    """One tile, which is full if `end` is None. Otherwise this is the end of the tensor."""
    SLOTS: tl.constexpr = len(CFG.CODES)
    lane = tl.arange(0, BLOCK)
    i = first + lane
    place = noise.places(of, first, lane)
    # Of the scales. A tensor that has some has whole blocks.
    block = first // SCALED_BLOCK + tl.arange(0, BLOCK // SCALED_BLOCK)
    mask = None
    block_ok = None
    if end is not None:
        mask = i < end
        block_ok = block * SCALED_BLOCK < end
    numbers = ()
    for k in tl.static_range(SLOTS):
        slot = (tensors[k], tensors[CFG.COMPANIONS[k]])
        number = load_slot(slot, i, mask, None, block, block_ok, k, CFG)
        if k == 1:
            number = number * grad_scale
        numbers = numbers + (number,)
    results = UPDATE(*numbers, *values)
    for k in tl.static_range(SLOTS):
        if k != 1:  # not the gradient
            slot = (tensors[k], tensors[CFG.COMPANIONS[k]])
            x = results[k - (k > 1)]
            store_slot(slot, i, mask, x, of, place, block, block_ok, k, CFG)
