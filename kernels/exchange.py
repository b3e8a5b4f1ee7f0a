"""The extra phases of Adafactor when processes add up its sums between the stages of a step.

`fusedstep.plan.launcher` gives the layout of the buffers `sums` and `sum_u2`. They are float64, as
all long sums are, so an exchange that changes nothing changes no bit.
"""

import triton
import triton.language as tl

from . import matrix, memory, rules, scalars
from . import tensor as whole
from .config import name_with_kind
from .numbers import div


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
    exchange,  # the sums of the first exchange
    sum_u2,  # of each tensor, for the second exchange
    CFG: tl.constexpr,
):
    """Like `dispatch.phase`, for the kinds of work of an exchange."""
    args = (table, cuts, scalar_row_of, scalars, controls, partials, sums)
    if tl.load(controls + 1) == 0:
        entry = entries + 2 * tl.program_id(0).to(tl.int64)
        at = tl.load(entry).to(tl.int64)
        unit = tl.load(entry + 1)
        if memory.has_gradient(args, at, CFG):
            if CFG.KIND == "PACK_COLUMNS":
                pack_columns(args, exchange, at, unit, CFG)
            elif CFG.KIND == "PACK_SQUARES":
                pack_squares(args, exchange, at, CFG)
            elif CFG.KIND == "COLUMNS_EXCHANGED":
                columns(args, exchange, at, unit, CFG)
            elif CFG.KIND == "TOTAL_U2":
                tl.store(sum_u2 + at, whole.sum_of_u2(args, at, CFG))
            else:
                tl.static_assert(CFG.KIND == "FINISH_EXCHANGED")
                finish(args, exchange, sum_u2, at, CFG)


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
    """Stores the sum of p^2, or 0 if the step does not depend on it and it was not summed."""
    sum_p = tl.zeros((), CFG.W)
    if scalars.is_scaled(memory.scalar_row(args, tensor), CFG.T):
        sum_p = whole.sum_of_p2(args, tensor, CFG)
    tl.store(sum_of_p2_at(args, exchange, tensor, CFG), sum_p)


@triton.jit
def columns(args, exchange, tensor, unit, CFG: tl.constexpr):
    """Column moments from the exchanged sums. Each process computes sum(u^2) of its own rows, so h
    is not exchanged."""
    table_row = memory.table_row(args, tensor, CFG)
    rows = memory.size(table_row, memory.ROWS, CFG)
    cols = memory.size(table_row, memory.COLS, CFG)
    tiles = memory.cut(args, tensor, memory.TILES)
    batch = unit // tiles
    col = unit % tiles * CFG.WIDTH + tl.arange(0, CFG.WIDTH)
    at = numbers_of(args, exchange, tensor, batch, cols)
    _, h = matrix.sums_of_units(args, tensor, batch, col, cols, CFG)
    s = tl.load(at + col, col < cols, other=0.0)
    mean = div(tl.load(at + 2 * cols), rows.to(CFG.W)).to(CFG.T)
    floor = scalars.get(memory.scalar_row(args, tensor), scalars.MEAN_FLOOR, CFG.T)
    mean = rules.floored_mean(mean, floor)
    mean_square = div(s, rows.to(CFG.W)).to(CFG.T)
    h = tl.sum(h, 0).to(CFG.T)
    matrix.finish_columns(args, tensor, batch, unit % tiles, col, mean, mean_square, h, CFG)


@triton.jit
def finish(args, exchange, sum_u2, tensor, CFG: tl.constexpr):
    """Step size and decay of a tensor, from the exchanged sums."""
    table_row = memory.table_row(args, tensor, CFG)
    rms_u = whole.root_mean_square(table_row, tl.load(sum_u2 + tensor), CFG)
    rms_p = tl.zeros((), CFG.W)
    if scalars.is_scaled(memory.scalar_row(args, tensor), CFG.T):
        sum_p = tl.load(sum_of_p2_at(args, exchange, tensor, CFG))
        rms_p = whole.root_mean_square(table_row, sum_p, CFG)
        whole.write_rms(table_row, rms_p, CFG)
    whole.store_step(args, tensor, rms_p, rms_u, CFG)
