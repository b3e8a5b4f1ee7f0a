"""Adafactor on matrices, once their moments are known. A unit is a few rows of a matrix.

COLUMNS has left the factors of columns. They are loaded with ".ca", which is what loads do anyway:
so tests can tell them from loads of tiles. Factors of rows are computed once per tile.
"""

import triton
import triton.language as tl

from . import memory, noise, rules, scalars
from . import tensor as whole
from .matrix import rows_of, unit_of
from .stored import SCALED_BLOCK, load_slot, moved_slot


@triton.jit
def elements(args, tensor, unit, CFG: tl.constexpr):
    """A unit's matrix, first row, number of rows, first column and end of columns."""
    table_row = memory.table_row(args, tensor, CFG)
    rows = memory.size(table_row, memory.ROWS, CFG)
    cols = memory.size(table_row, memory.COLS, CFG)
    batch, block, chunk = unit_of(args, tensor, unit, memory.UPDATE_BLOCKS)
    first, count = rows_of(args, tensor, block, rows, memory.UPDATE_ROWS)
    chunk_cols = memory.chunk_cols(args, tensor)
    left = chunk * chunk_cols
    return batch, first, count, left, tl.minimum(left + chunk_cols, cols)


@triton.jit
def squares(args, tensor, unit, CFG: tl.constexpr):
    """The sum of p^2, if it is wanted now."""
    table_row = memory.table_row(args, tensor, CFG)
    if whole.sums_early(args, tensor, table_row, CFG):
        rows = memory.size(table_row, memory.ROWS, CFG)
        cols = memory.aligned_size(table_row, memory.COLS, CFG)
        batch, first, count, left, right = elements(args, tensor, unit, CFG)
        p_slot = memory.stored_slot(table_row, 0, CFG)
        p_slot = moved_slot(p_slot, (batch * rows + first) * cols)
        total = tl.full((CFG.HEIGHT, CFG.WIDTH), 0.0, CFG.T)
        for start in range(left, right, CFG.WIDTH):
            col = start + tl.arange(0, CFG.WIDTH)
            for top in range(0, count, CFG.HEIGHT):
                row = top + tl.arange(0, CFG.HEIGHT)
                mask = (row < count)[:, None] & (col < cols)[None, :]
                place = row[:, None] * cols + col[None, :]
                p = load_slot(p_slot, place, mask, 0.0, None, None, 0, CFG)
                total += p * p
        part = tl.sum(tl.sum(total, 0), 0).to(CFG.W)
        tl.store(memory.sums(args, tensor, memory.P_AT) + unit, part)


@triton.jit
def is_capped(args, tensor, batch, mean, cap, CFG: tl.constexpr):
    """Whether the cap changes any element of a matrix."""
    blocks = memory.cut(args, tensor, memory.ROW_BLOCKS)
    tiles = memory.cut(args, tensor, memory.TILES)
    rows_at = memory.sums(args, tensor, memory.ROWS_AT) + 2 * batch * blocks
    cols_at = memory.sums(args, tensor, memory.LEAST_COL_AT) + batch * tiles
    least_row = memory.least(rows_at + 1, blocks, 2, CFG.W, 128).to(CFG.T)
    least_col = memory.least(cols_at, tiles, 1, CFG.W, 128).to(CFG.T)
    return rules.is_capped(least_row, least_col, mean, cap)


@triton.jit
def sum_u2(args, tensor, unit, CFG: tl.constexpr):
    """The sum of u^2. It is exact if the cap changes the matrix. If not, the matrix's first unit
    adds up the sums of its columns."""
    cap = scalars.get(memory.scalar_row(args, tensor), scalars.CAP, CFG.T)
    if cap < float("inf"):
        table_row = memory.table_row(args, tensor, CFG)
        rows = memory.size(table_row, memory.ROWS, CFG)
        cols = memory.aligned_size(table_row, memory.COLS, CFG)
        batch, first, count, left, right = elements(args, tensor, unit, CFG)
        mean = tl.load(memory.sums(args, tensor, memory.MEAN_AT) + batch).to(CFG.T)
        part = tl.zeros((), CFG.W)
        if is_capped(args, tensor, batch, mean, cap, CFG):
            scale = memory.gradient_scale(args, tensor, CFG)
            is_scaled = tl.abs(scale) != 1.0  # the sign does not matter
            g_at = memory.slot(table_row, 1, CFG) + (batch * rows + first) * cols
            row_at = memory.slot_anywhere(table_row, 2, CFG) + batch * rows + first
            factor_at = memory.col_factors(args, tensor, batch, cols)
            total = tl.full((CFG.HEIGHT, CFG.WIDTH), 0.0, CFG.T)
            for start in range(left, right, CFG.WIDTH):
                col = start + tl.arange(0, CFG.WIDTH)
                c = tl.load(factor_at + col, col < cols, other=1.0, cache_modifier=".ca")
                for top in range(0, count, CFG.HEIGHT):
                    row = top + tl.arange(0, CFG.HEIGHT)
                    mask = (row < count)[:, None] & (col < cols)[None, :]
                    place = row[:, None] * cols + col[None, :]
                    # First of all, so that the factors of rows are computed while it comes.
                    g = tl.load(g_at + place, mask, other=0.0).to(CFG.T)
                    moment = tl.load(row_at + row, row < count, other=1.0).to(CFG.T)
                    if is_scaled:
                        g *= scale
                    r = rules.row_factor(moment, mean)
                    # Outside of the matrix g is 0 and the cap is finite. So u is 0, or nan if it is
                    # for an element of the matrix.
                    u = rules.precondition(g, r[:, None] * c[None, :], cap)
                    total += u * u
            part = tl.sum(tl.sum(total, 0), 0).to(CFG.W)
        elif (first == 0) & (left == 0):
            tiles = memory.cut(args, tensor, memory.TILES)
            u_at = memory.sums(args, tensor, memory.U_AT) + batch * tiles
            part = memory.total(u_at, tiles, 1, CFG.W, 128)
        tl.store(memory.sums(args, tensor, memory.LATE_AT) + unit, part)


@triton.jit
def update(args, tensor, unit, UPDATE: tl.constexpr, CFG: tl.constexpr):
    """The second read: parameter and momentum."""
    table_row = memory.table_row(args, tensor, CFG)
    rows = memory.size(table_row, memory.ROWS, CFG)
    cols = memory.aligned_size(table_row, memory.COLS, CFG)
    batch, first, count, left, right = elements(args, tensor, unit, CFG)
    mean = tl.load(memory.sums(args, tensor, memory.MEAN_AT) + batch).to(CFG.T)
    cap = scalars.get(memory.scalar_row(args, tensor), scalars.CAP, CFG.T)
    scale = memory.gradient_scale(args, tensor, CFG)
    writer = whole.writer(args, tensor, table_row, CFG)
    batches = memory.size(table_row, memory.BATCH, CFG)
    of = memory.noise_of(args, tensor, batches * rows * cols)
    g_at = memory.slot(table_row, 1, CFG)
    row_at = memory.slot_anywhere(table_row, 2, CFG) + batch * rows + first
    factor_at = memory.col_factors(args, tensor, batch, cols)
    total = tl.full((CFG.HEIGHT, CFG.WIDTH), 0.0, CFG.T)
    for start in range(left, right, CFG.WIDTH):
        col = start + tl.arange(0, CFG.WIDTH)
        c = tl.load(factor_at + col, col < cols, other=0.0, cache_modifier=".ca")
        for top in range(0, count, CFG.HEIGHT):
            row = top + tl.arange(0, CFG.HEIGHT)
            mask = (row < count)[:, None] & (col < cols)[None, :]
            line = (batch * rows + first + row)[:, None] * cols
            at = line + col[None, :]
            place = noise.places(of, line + start, tl.arange(0, CFG.WIDTH)[None, :])
            block, block_ok = scales_of(batch * rows + first, top, count, start, cols, CFG)
            r = rules.row_factor(tl.load(row_at + row, row < count, other=1.0).to(CFG.T), mean)
            g = tl.load(g_at + at, mask, other=0.0).to(CFG.T) * scale
            u = rules.precondition(g, r[:, None] * c[None, :], cap)
            total += whole.write(writer, at, mask, of, place, block, block_ok, u, UPDATE, CFG)
    if whole.sums_late(args, tensor, table_row, CFG):
        part = tl.sum(tl.sum(total, 0), 0).to(CFG.W)
        tl.store(memory.sums(args, tensor, memory.LATE_AT) + unit, part)


@triton.jit
def scales_of(before, top, count, left, cols, CFG: tl.constexpr):
    """The offsets of the scales of a tile of the momentum, and their mask, for a momentum that has
    some. The tile begins at row `top` of `count`, before which are `before` rows, and at column
    `left`. Rows have whole blocks."""
    IN_ROW: tl.constexpr = (CFG.WIDTH + SCALED_BLOCK - 1) // SCALED_BLOCK
    block = tl.arange(0, CFG.HEIGHT * IN_ROW)
    row, in_row = top + block // IN_ROW, block % IN_ROW
    ok = (row < count) & (left + in_row * SCALED_BLOCK < cols)
    return ((before + row) * cols + left) // SCALED_BLOCK + in_row, ok
