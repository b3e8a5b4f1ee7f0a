"""Where a unit of factored work finds its tensor: slots, sizes, scalars, cut, scratch.

`args` is what all units of a launch share: table, cuts, scalar_row_of, scalars, controls, partials,
sums, noise_rows (see `launch.py`). Only this file reads it.
"""

import triton
import triton.language as tl

from fusedstep.gpu import cut as layout
from fusedstep.rules.layout import SIZES

from . import blocks, noise, scalars

CUT_FIELDS = tl.constexpr(len(layout.FIELDS))
FLAT_WIDTH = tl.constexpr(blocks.UNIT_SIZES.flat_width)
WHOLE_ROW = tl.constexpr(blocks.WHOLE_ROW)
VECTOR_UNIT = tl.constexpr(layout.VECTOR_UNIT)


def _place(name: str) -> tl.constexpr:
    return tl.constexpr(layout.FIELDS.index(name))


UNIT_ROWS = _place("unit_rows")
ROW_BLOCKS = _place("row_blocks")
CHUNK_COLS = _place("chunk_cols")
CHUNKS = _place("chunks")
TILES = _place("tiles")
UPDATE_ROWS = _place("update_rows")
UPDATE_BLOCKS = _place("update_blocks")
EXCHANGE_AT = _place("exchange_at")
PARTIALS_AT = _place("partials_at")
COL_FACTORS_AT = _place("col_factors_at")
STEP_AT = _place("step_at")
P_AT = _place("p_at")
P_COUNT = _place("p_count")
U_AT = _place("u_at")
U_COUNT = _place("u_count")
LATE_AT = _place("late_at")
LATE_COUNT = _place("late_count")
EXACT_COUNT = _place("exact_count")
ROWS_AT = _place("rows_at")
LEAST_COL_AT = _place("least_col_at")
MEAN_AT = _place("mean_at")

# What a row of the table holds after the slots.
RMS = tl.constexpr(SIZES["matrix"].index("rms"))  # the same for a vector
BATCH = tl.constexpr(SIZES["matrix"].index("batch"))
ROWS = tl.constexpr(SIZES["matrix"].index("rows"))
COLS = tl.constexpr(SIZES["matrix"].index("cols"))
MATRIX_SIZES = tl.constexpr(len(SIZES["matrix"]))
ELEMENTS = tl.constexpr(SIZES["vector"].index("elements"))
VECTOR_SIZES = tl.constexpr(len(SIZES["vector"]))


@triton.jit
def table_row(args, tensor, CFG: tl.constexpr):
    """The tensor's row of the table."""
    if CFG.VECTOR:
        return args[0] + tensor * (len(CFG.DTYPES) + VECTOR_SIZES)
    else:
        return args[0] + tensor * (len(CFG.DTYPES) + MATRIX_SIZES)


@triton.jit
def has_gradient(args, tensor, CFG: tl.constexpr):
    """Whether the tensor has a gradient in this step. If not, its cell is 0, and kernels leave the
    tensor alone."""
    return tl.load(table_row(args, tensor, CFG) + 1) != 0


@triton.jit
def slot(table_row, SLOT: tl.constexpr, CFG: tl.constexpr):
    """The address of a tensor that is loaded in tiles."""
    pointer = tl.load(table_row + SLOT).to(tl.pointer_type(CFG.DTYPES[SLOT]))
    if CFG.ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def stored_slot(table_row, SLOT: tl.constexpr, CFG: tl.constexpr):
    """A slot that may have a companion: see `stored.py`."""
    own = slot(table_row, SLOT, CFG)
    if CFG.COMPANIONS[SLOT] == 0:
        return own, own
    else:
        return own, slot(table_row, CFG.COMPANIONS[SLOT], CFG)


@triton.jit
def slot_anywhere(table_row, SLOT: tl.constexpr, CFG: tl.constexpr):
    """The address of a tensor, with no promise of alignment."""
    return tl.load(table_row + SLOT).to(tl.pointer_type(CFG.DTYPES[SLOT]))


@triton.jit
def size(table_row, place, CFG: tl.constexpr):
    return tl.load(table_row + len(CFG.DTYPES) + place)


@triton.jit
def aligned_size(table_row, place, CFG: tl.constexpr):
    """A size that tiles run along. The promise of alignment must be on the load itself: the result
    of a call would lose it."""
    count = tl.load(table_row + len(CFG.DTYPES) + place)
    if CFG.ALIGNED:
        count = tl.multiple_of(count, 16)
    return count


@triton.jit
def cut(args, tensor, place):
    return tl.load(args[1] + tensor * CUT_FIELDS + place)


@triton.jit
def chunk_cols(args, tensor):
    """The most columns of a unit: a multiple of the narrowest tile."""
    width = tl.load(args[1] + tensor * CUT_FIELDS + CHUNK_COLS)
    return tl.multiple_of(width, 16)


@triton.jit
def count(args, tensor, place):
    """A number of the cut that fits in 32 bits."""
    return cut(args, tensor, place).to(tl.int32)


@triton.jit
def scalar_row(args, tensor):
    return args[3] + tl.load(args[2] + tensor) * scalars.ROW_LENGTH


@triton.jit
def gradient_scale(args, tensor, CFG: tl.constexpr):
    sign = scalars.get(scalar_row(args, tensor), scalars.SIGN, CFG.T)
    return tl.load(args[4]).to(CFG.T) * sign


@triton.jit
def noise_of(args, tensor, elements):
    """What the noise of the tensor's step depends on, or None. `elements` are those here."""
    if args[7] is None:
        return  # `return None` does not compile before Triton 3.7
    else:
        step = tl.load(scalar_row(args, tensor) + scalars.STEP)
        return noise.of_tensor(args[7], tensor, step, elements)


@triton.jit
def sums(args, tensor, place):
    """The address of a tensor's sums in scratch."""
    return args[6] + cut(args, tensor, place)


@triton.jit
def partials(args, tensor):
    return args[5] + cut(args, tensor, PARTIALS_AT)


@triton.jit
def col_factors(args, tensor, batch, cols):
    """The factors of a matrix's columns, which COLUMNS leaves to the second read."""
    at = tl.load(args[1] + tensor * CUT_FIELDS + PARTIALS_AT)
    more = tl.load(args[1] + tensor * CUT_FIELDS + COL_FACTORS_AT)
    return args[5] + tl.multiple_of(at, 8) + tl.multiple_of(more, 8) + batch * cols


@triton.jit
def total(first, count, STRIDE: tl.constexpr, W: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of `count` numbers in scratch, always in the same order."""
    sum_of_lane = tl.zeros((BLOCK,), W)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        sum_of_lane += tl.load(first + i * STRIDE, i < count, other=0.0)
    return tl.sum(sum_of_lane, 0)


@triton.jit
def least(first, count, STRIDE: tl.constexpr, W: tl.constexpr, BLOCK: tl.constexpr):
    least_of_lane = tl.full((BLOCK,), float("inf"), W)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        found = tl.load(first + i * STRIDE, i < count, other=float("inf"))
        least_of_lane = tl.minimum(least_of_lane, found)
    return tl.min(least_of_lane, 0)
