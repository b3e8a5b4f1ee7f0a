"""The extra work of Adafactor when processes add up its sums between the stages of a step.

`fusedstep.plan.launcher` gives the layout of the buffers `sums` and `of_tensors`. They are float64,
as all long sums are, so an exchange that changes nothing changes no bit. Means are over whole rows,
columns and tensors, of which this process has a part, or nothing: then there are no units to add
up, and the sums that it leaves are zeros.
"""

import triton
import triton.language as tl

from fusedstep.plan.launcher import OF_TENSOR

from . import matrix, memory, rules, scalars
from . import tensor as whole
from .config import name_with_kind
from .numbers import div


def _place(name: str) -> tl.constexpr:
    return tl.constexpr(OF_TENSOR.index(name))


OF_TENSOR_LENGTH = tl.constexpr(len(OF_TENSOR))
SUM_U2 = _place("sum_u2")
ROWS = _place("rows")
COLS = _place("cols")
ELEMENTS = _place("elements")
CAPPED = _place("capped")


@triton.jit(repr=name_with_kind)
def exchange_phase(
    entries,
    table,
    cuts,
    scalar_row_of,
    scalars,
    controls,
    partials,
    sums,
    exchange,  # the sums that read 1 leaves
    of_tensors,  # sum u^2, sizes of whole matrices and tensors
    CFG: tl.constexpr,
):
    """Like `dispatch.phase`, for the kinds of work of an exchange."""
    args = (table, cuts, scalar_row_of, scalars, controls, partials, sums)
    if tl.load(controls + 1) == 0:
        entry = entries + 2 * tl.program_id(0).to(tl.int64)
        at = tl.load(entry).to(tl.int64)
        unit = tl.load(entry + 1)
        if memory.has_gradient(args, at, CFG):
            numbers = of_tensors + at * OF_TENSOR_LENGTH
            if CFG.KIND == "PACK_ROWS":
                pack_rows(args, exchange, at, unit, CFG)
            elif CFG.KIND == "ROWS_EXCHANGED":
                row_sums = rows_at(args, exchange, at, CFG)
                matrix.row_moments(args, at, unit, row_sums, tl.load(numbers + COLS), CFG)
            elif CFG.KIND == "PACK_COLUMNS":
                pack_columns(args, exchange, at, unit, CFG)
            elif CFG.KIND == "PACK_SQUARES":
                pack_squares(args, exchange, at, CFG)
            elif CFG.KIND == "COLUMNS_EXCHANGED":
                columns(args, exchange, numbers, at, unit, CFG)
            elif CFG.KIND == "TOTAL_U2":
                total_u2(args, numbers, at, CFG)
            else:
                tl.static_assert(CFG.KIND == "FINISH_EXCHANGED")
                finish(args, exchange, numbers, at, CFG)


@triton.jit
def numbers_of(args, exchange, tensor, matrices, cols):
    """The address after the numbers of the tensor's first `matrices` matrices."""
    return exchange + memory.cut(args, tensor, memory.EXCHANGE_AT) + matrices * (2 * cols + 1)


@triton.jit
def sum_of_p2_at(args, exchange, tensor, CFG: tl.constexpr):
    if CFG.VECTOR:
        return numbers_of(args, exchange, tensor, 0, 0)
    else:
        table_row = memory.table_row(args, tensor, CFG)
        batch = memory.size(table_row, memory.BATCH, CFG)
        return numbers_of(args, exchange, tensor, batch, memory.size(table_row, memory.COLS, CFG))


@triton.jit
def rows_at(args, exchange, tensor, CFG: tl.constexpr):
    """If columns are split, the sums along all rows of the tensor come last."""
    return sum_of_p2_at(args, exchange, tensor, CFG) + 1


@triton.jit
def pack_rows(args, exchange, tensor, unit, CFG: tl.constexpr):
    """Adds up the chunks of a block of rows."""
    rows = memory.size(memory.table_row(args, tensor, CFG), memory.ROWS, CFG)
    blocks = memory.cut(args, tensor, memory.ROW_BLOCKS)
    chunks = memory.cut(args, tensor, memory.CHUNKS)
    unit_rows = memory.cut(args, tensor, memory.UNIT_ROWS)
    before = unit // blocks * rows  # in other matrices
    first = unit % blocks * unit_rows
    end = tl.minimum(first + unit_rows, rows)
    out = rows_at(args, exchange, tensor, CFG) + before
    sums_at = memory.partials(args, tensor) + before * chunks
    for start in range(first, end, CFG.WIDTH):
        row = start + tl.arange(0, CFG.WIDTH)
        ok = row < end
        tl.store(out + row, matrix.sums_of_chunks(sums_at, row, ok, chunks, CFG), ok)


@triton.jit
def pack_columns(args, exchange, tensor, unit, CFG: tl.constexpr):
    """Sums down some columns, from the sums of the units. The first unit of a matrix also stores
    the sum of the row moments."""
    cols = memory.size(memory.table_row(args, tensor, CFG), memory.COLS, CFG)
    tiles = memory.cut(args, tensor, memory.TILES)
    batch = unit // tiles
    col = unit % tiles * CFG.WIDTH + tl.arange(0, CFG.WIDTH)
    s, h = matrix.sums_of_units(args, tensor, batch, col, cols, CFG)
    at = numbers_of(args, exchange, tensor, batch, cols)
    tl.store(at + col, tl.sum(s, 0), col < cols)
    tl.store(at + cols + col, tl.sum(h, 0), col < cols)
    if unit % tiles == 0:
        tl.store(at + 2 * cols, matrix.sum_of_rows(args, tensor, batch, CFG))


@triton.jit
def pack_squares(args, exchange, tensor, CFG: tl.constexpr):
    """Stores the sum of p^2, or 0 if it is not wanted and was not summed."""
    sum_p = tl.zeros((), CFG.W)
    if whole.sums_early(args, tensor, memory.table_row(args, tensor, CFG), CFG):
        sum_p = whole.sum_of_p2(args, tensor, CFG)
    tl.store(sum_of_p2_at(args, exchange, tensor, CFG), sum_p)


@triton.jit
def columns(args, exchange, numbers, tensor, unit, CFG: tl.constexpr):
    """Column moments from the exchanged sums. If a cap may change u, each process computes sum(u^2)
    of its own rows, so from its own h."""
    cols = memory.size(memory.table_row(args, tensor, CFG), memory.COLS, CFG)
    rows = tl.load(numbers + ROWS)  # of the whole matrix
    tiles = memory.cut(args, tensor, memory.TILES)
    batch = unit // tiles
    col = unit % tiles * CFG.WIDTH + tl.arange(0, CFG.WIDTH)
    at = numbers_of(args, exchange, tensor, batch, cols)
    s = tl.load(at + col, col < cols, other=0.0)
    h = tl.load(at + cols + col, col < cols, other=0.0)
    if tl.load(numbers + CAPPED) != 0:
        _, own_h = matrix.sums_of_units(args, tensor, batch, col, cols, CFG)
        h = tl.sum(own_h, 0)
    mean = div(tl.load(at + 2 * cols), rows).to(CFG.T)
    floor = scalars.get(memory.scalar_row(args, tensor), scalars.MEAN_FLOOR, CFG.T)
    mean = rules.floored_mean(mean, floor)
    mean_square = div(s, rows).to(CFG.T)
    tile = unit % tiles
    matrix.finish_columns(args, tensor, batch, tile, col, mean, mean_square, h.to(CFG.T), CFG)


@triton.jit
def total_u2(args, numbers, tensor, CFG: tl.constexpr):
    """Without rows here, sum(u^2) of them is 0, also where moments of columns are."""
    sum_u2 = whole.sum_of_u2(args, tensor, CFG)
    if not CFG.VECTOR:
        rows = memory.size(memory.table_row(args, tensor, CFG), memory.ROWS, CFG)
        is_nothing = (rows == 0) & (tl.load(numbers + CAPPED) != 0)
        sum_u2 = tl.where(is_nothing, 0.0, sum_u2)
    tl.store(numbers + SUM_U2, sum_u2)


@triton.jit
def finish(args, exchange, numbers, tensor, CFG: tl.constexpr):
    """Step size, decay and rms(p) of a tensor, from the exchanged sums."""
    table_row = memory.table_row(args, tensor, CFG)
    elements = tl.load(numbers + ELEMENTS)
    rms_u = rules.rms(tl.load(numbers + SUM_U2), elements)
    rms_p = tl.zeros((), CFG.W)
    if whole.sums_early(args, tensor, table_row, CFG):
        rms_p = rules.rms(tl.load(sum_of_p2_at(args, exchange, tensor, CFG)), elements)
        whole.write_rms(table_row, rms_p, CFG)
    whole.store_step(args, tensor, rms_p, rms_u, CFG)
