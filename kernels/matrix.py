"""Adafactor on all matrices except tiny ones: the kinds of work that `cut.py` names.

A tile keeps whole rows of the gradient on chip. So one read gives the sums along its rows and, with
the rows' new second moments, the sums down its columns. Offsets are 64-bit numbers. The sums of a
unit go to scratch and are added up in a fixed order: there are no atomic adds.
"""

import triton
import triton.language as tl

from . import memory, rules, scalars
from .numbers import div, round_to_storage


@triton.jit
def unit_of(args, tensor, unit, BLOCKS):
    """(matrix of the batch, block of rows, chunk of columns) of a unit of work."""
    chunks = memory.count(args, tensor, memory.CHUNKS)
    blocks = memory.count(args, tensor, BLOCKS)
    block = unit // chunks
    return (block // blocks).to(tl.int64), (block % blocks).to(tl.int64), unit % chunks


@triton.jit
def new_moment(old, mean_square, decay_rates, DTYPE: tl.constexpr):
    """The new second moment, rounded to storage."""
    beta2, one_minus_beta2, eps_stat = decay_rates
    return round_to_storage(
        rules.second_moment(old, mean_square, beta2, one_minus_beta2, eps_stat), DTYPE
    )


@triton.jit
def rows_of(args, tensor, block, rows, HEIGHT):
    """The first row of a block of rows, and how many it has."""
    height = memory.cut(args, tensor, HEIGHT)
    first = block * height
    return first, tl.minimum(height, rows - first).to(tl.int32)


@triton.jit
def tile(rows_left, cols_left, cols, CFG: tl.constexpr):
    """Which rows and columns of a tile are in the matrix, and the offsets of its elements from the
    first one. They fit in 32 bits: a tile is one row high or as wide as the matrix."""
    row = tl.arange(0, CFG.HEIGHT)
    col = tl.arange(0, CFG.WIDTH)
    place = row[:, None] * cols.to(tl.int32) + col[None, :]
    return row < rows_left, col < cols_left, place


@triton.jit
def row_sums(args, tensor, unit, CFG: tl.constexpr):
    """Sums of g^2 along the rows of a chunk of columns, where rows are too long for a tile or split
    among processes."""
    table_row = memory.table_row(args, tensor, CFG)
    rows = memory.size(table_row, memory.ROWS, CFG)
    cols = memory.aligned_size(table_row, memory.COLS, CFG)
    batch, block, chunk = unit_of(args, tensor, unit, memory.ROW_BLOCKS)
    chunks = memory.cut(args, tensor, memory.CHUNKS)
    scale = memory.gradient_scale(args, tensor, CFG)
    first, count = rows_of(args, tensor, block, rows, memory.UNIT_ROWS)
    left = chunk.to(tl.int64) * CFG.WIDTH
    g_at = memory.slot(table_row, 1, CFG) + (batch * rows + first) * cols + left
    out = memory.partials(args, tensor) + (batch * rows + first) * chunks + chunk
    for row in range(0, count, CFG.HEIGHT):
        row_ok, col_ok, place = tile(count - row, cols - left, cols, CFG)
        mask = row_ok[:, None] & col_ok[None, :]
        g = tl.load(g_at + row * cols + place, mask, other=0.0).to(CFG.T) * scale
        tl.store(out + (row + tl.arange(0, CFG.HEIGHT)) * chunks, tl.sum(g * g, 1), row_ok)


@triton.jit
def sums_of_chunks(sums_at, row, ok, chunks, CFG: tl.constexpr):
    """The sums of g^2 along some rows, from the sums of their chunks."""
    square = tl.full((CFG.WIDTH,), 0.0, CFG.W)
    for chunk in range(0, chunks):
        square += tl.load(sums_at + row * chunks + chunk, ok, other=0.0)
    return square


@triton.jit
def row_moments(args, tensor, unit, exchanged, whole_cols, CFG: tl.constexpr):
    """The row moments of a block of rows. ROWS makes them from the sums of its chunks,
    ROWS_EXCHANGED from the tensor's `exchanged` sums along rows of `whole_cols` columns."""
    table_row = memory.table_row(args, tensor, CFG)
    rows = memory.size(table_row, memory.ROWS, CFG)
    cols = memory.size(table_row, memory.COLS, CFG)
    blocks = memory.cut(args, tensor, memory.ROW_BLOCKS)
    chunks = memory.cut(args, tensor, memory.CHUNKS)
    unit_rows = memory.cut(args, tensor, memory.UNIT_ROWS)
    decay_rates = scalars.decay_rates(memory.scalar_row(args, tensor), CFG.T)
    batch = unit // blocks
    row_at = memory.slot_anywhere(table_row, 2, CFG) + batch * rows
    sums_at = memory.partials(args, tensor) + batch * rows * chunks
    first = unit % blocks * unit_rows
    end = tl.minimum(first + unit_rows, rows)
    sum_of_lane = tl.full((CFG.WIDTH,), 0.0, CFG.W)
    least_of_lane = tl.full((CFG.WIDTH,), float("inf"), CFG.W)
    for start in range(first, end, CFG.WIDTH):
        row = start + tl.arange(0, CFG.WIDTH)
        ok = row < end
        if CFG.KIND == "ROWS":
            mean_square = div(sums_of_chunks(sums_at, row, ok, chunks, CFG), cols.to(CFG.W))
        else:
            mean_square = div(tl.load(exchanged + batch * rows + row, ok, other=0.0), whole_cols)
        old = tl.load(row_at + row, ok, other=1.0).to(CFG.T)
        new = new_moment(old, mean_square.to(CFG.T), decay_rates, CFG.DTYPES[2])
        tl.store(row_at + row, new, ok)
        sum_of_lane += tl.where(ok, new.to(CFG.W), 0.0)
        least_of_lane = tl.minimum(least_of_lane, least_or_inf(new.to(CFG.W), ok))
    store_rows(args, tensor, unit, tl.sum(sum_of_lane, 0), tl.min(least_of_lane, 0))


@triton.jit
def least_or_inf(x, ok):
    """`x` for a minimum that ignores nan and masked elements."""
    return tl.where(ok & (x == x), x, float("inf"))


@triton.jit
def store_rows(args, tensor, block, sum_of_rows, least_row):
    at = memory.sums(args, tensor, memory.ROWS_AT) + 2 * block
    tl.store(at, sum_of_rows)
    tl.store(at + 1, least_row)


@triton.jit
def sum_of_rows(args, tensor, batch, CFG: tl.constexpr):
    """The sum of a matrix's row moments, from the sums of its blocks."""
    blocks = memory.cut(args, tensor, memory.ROW_BLOCKS)
    at = memory.sums(args, tensor, memory.ROWS_AT) + 2 * batch * blocks
    return memory.total(at, blocks, 2, CFG.W, 128)


@triton.jit
def mean_of_rows(args, tensor, batch, rows, CFG: tl.constexpr):
    """The mean of a matrix's row moments, with a floor."""
    mean = div(sum_of_rows(args, tensor, batch, CFG), rows.to(CFG.W)).to(CFG.T)
    floor = scalars.get(memory.scalar_row(args, tensor), scalars.MEAN_FLOOR, CFG.T)
    return rules.floored_mean(mean, floor)


@triton.jit
def statistics(args, tensor, unit, CFG: tl.constexpr):
    """Row moments of a unit, and its sums of g^2 and g^2 / row down the columns. A unit with all
    rows of its matrix also makes the column moments. COLUMN_SUMS is for rows in chunks, whose
    moments were made before."""
    table_row = memory.table_row(args, tensor, CFG)
    rows = memory.size(table_row, memory.ROWS, CFG)
    cols = memory.aligned_size(table_row, memory.COLS, CFG)
    batch, block, chunk = unit_of(args, tensor, unit, memory.ROW_BLOCKS)
    first, count = rows_of(args, tensor, block, rows, memory.UNIT_ROWS)
    left = chunk.to(tl.int64) * CFG.WIDTH
    blocks = memory.cut(args, tensor, memory.ROW_BLOCKS)
    scalar_row = memory.scalar_row(args, tensor)
    decay_rates = scalars.decay_rates(scalar_row, CFG.T)
    scale = memory.gradient_scale(args, tensor, CFG)
    g_at = memory.slot(table_row, 1, CFG) + (batch * rows + first) * cols + left
    row_at = memory.slot_anywhere(table_row, 2, CFG) + batch * rows + first
    is_scaled = tl.abs(scale) != 1.0  # the sign does not matter
    per_column = div(tl.full((), 1.0, CFG.T), cols.to(CFG.T))
    s = tl.full((CFG.SUM_ROWS, CFG.WIDTH), 0.0, CFG.T)
    h = tl.full((CFG.SUM_ROWS, CFG.WIDTH), 0.0, CFG.T)
    sum_of_lane = tl.full((CFG.HEIGHT,), 0.0, CFG.W)
    least_of_lane = tl.full((CFG.HEIGHT,), float("inf"), CFG.T)
    # Load two tiles ahead into shared memory.
    for row in tl.range(0, count, CFG.HEIGHT, num_stages=3):
        row_ok, col_ok, place = tile(count - row, cols - left, cols, CFG)
        mask = row_ok[:, None] & col_ok[None, :]
        g = tl.load(g_at + row * cols + place, mask, other=0.0).to(CFG.T)
        # Rows past the end add nothing: their squares are zero and their moment is one.
        moment_at = row_at + row + tl.arange(0, CFG.HEIGHT)
        moment = tl.load(moment_at, row_ok, other=1.0).to(CFG.T)
        if is_scaled:
            g *= scale
        square = g * g
        if CFG.KIND != "COLUMN_SUMS":
            # The threads that load a row's moment also add up the row, so all of them have loaded
            # it before one stores it.
            mean_square = tl.sum(square, 1) * per_column
            stored = new_moment(moment, mean_square, decay_rates, CFG.DTYPES[2])
            tl.store(moment_at, stored, row_ok)
            moment = tl.where(row_ok, stored.to(CFG.T), 1.0)
            sum_of_lane += tl.where(row_ok, moment, 0.0).to(CFG.W)
            least_of_lane = tl.minimum(least_of_lane, least_or_inf(moment, row_ok))
        s, h = with_rows(s, h, square, rules.inverse(moment), CFG)
    s = tl.sum(s, 0)
    h = tl.sum(h, 0)
    if CFG.KIND != "COLUMN_SUMS":
        least_row = tl.min(least_of_lane, 0).to(CFG.W)
        store_rows(args, tensor, batch * blocks + block, tl.sum(sum_of_lane, 0), least_row)
    col = left + tl.arange(0, CFG.WIDTH)
    if (blocks == 1) & (CFG.WIDTH <= memory.FLAT_WIDTH):
        if CFG.KIND == "COLUMN_SUMS":
            mean = mean_of_rows(args, tensor, batch, rows, CFG)
        else:
            mean = div(tl.sum(sum_of_lane, 0), rows.to(CFG.W)).to(CFG.T)
            mean = rules.floored_mean(mean, scalars.get(scalar_row, scalars.MEAN_FLOOR, CFG.T))
        mean_square = div(s, rows.to(CFG.T))
        finish_columns(args, tensor, batch, chunk, col, mean, mean_square, h, CFG)
    else:
        out = memory.partials(args, tensor) + (batch * blocks + block) * 2 * cols
        tl.store(out + col, s, col < cols)
        tl.store(out + cols + col, h, col < cols)


@triton.jit
def with_rows(s, h, square, weight, CFG: tl.constexpr):
    """The sums down the columns with a tile's squares, as they are and weighted. Only here is a
    product fused with a sum: that is one instruction less for each element."""
    if CFG.SUM_ROWS == CFG.HEIGHT:
        return s + square, fused(square, weight[:, None], h)
    else:
        first, second = halves(square)
        of_first, of_second = tl.split(tl.trans(tl.reshape(weight, (2, CFG.HEIGHT // 2))))
        return s + (first + second), fused(
            second, of_second[:, None], fused(first, of_first[:, None], h)
        )


@triton.jit
def halves(tile):
    """The upper and the lower half of a tile. A thread has elements of both in the same column."""
    rows: tl.constexpr = tile.shape[0] // 2
    both = tl.reshape(tile, (2, rows, tile.shape[1]))
    return tl.split(tl.permute(both, (1, 2, 0)))


@triton.jit
def fused(a, b, c):
    """a * b + c, rounded once."""
    return tl.fma(a, tl.broadcast_to(b, a.shape), c)


@triton.jit
def finish_columns(args, tensor, batch, tile, col, mean, mean_square, h, CFG: tl.constexpr):
    """Column moments from sums down whole columns, and the part of sum(u^2) of these columns."""
    table_row = memory.table_row(args, tensor, CFG)
    cols = memory.size(table_row, memory.COLS, CFG)
    ok = col < cols
    col_at = memory.slot_anywhere(table_row, 3, CFG) + batch * cols + col
    old = tl.load(col_at, ok, other=1.0).to(CFG.T)
    # Several threads may load a column's moment. All must load it before one stores it.
    tl.debug_barrier()
    decay_rates = scalars.decay_rates(memory.scalar_row(args, tensor), CFG.T)
    stored = new_moment(old, mean_square, decay_rates, CFG.DTYPES[3])
    tl.store(col_at, stored, ok)
    moment = stored.to(CFG.T)
    tl.store(memory.col_factors(args, tensor, batch, cols) + col, rules.col_factor(moment), ok)
    sum_u2 = tl.where(ok, rules.col_sum_u2(h, moment, mean), 0.0)
    at = batch * memory.cut(args, tensor, memory.TILES) + tile
    tl.store(memory.sums(args, tensor, memory.U_AT) + at, tl.sum(sum_u2, 0).to(CFG.W))
    least = tl.min(least_or_inf(moment, ok), 0).to(CFG.W)
    tl.store(memory.sums(args, tensor, memory.LEAST_COL_AT) + at, least)
    if tile == 0:
        tl.store(memory.sums(args, tensor, memory.MEAN_AT) + batch, mean.to(CFG.W))


@triton.jit
def sums_of_units(args, tensor, batch, col, cols, CFG: tl.constexpr):
    """The units' sums of g^2 and g^2 / row for some columns, as tiles that the caller adds up."""
    blocks = memory.cut(args, tensor, memory.ROW_BLOCKS)
    at = memory.partials(args, tensor) + batch * blocks * 2 * cols + col[None, :]
    s = tl.full((CFG.HEIGHT, CFG.WIDTH), 0.0, CFG.W)
    h = tl.full((CFG.HEIGHT, CFG.WIDTH), 0.0, CFG.W)
    for first in range(0, blocks, CFG.HEIGHT):
        block = (first + tl.arange(0, CFG.HEIGHT))[:, None]
        mask = (block < blocks) & (col < cols)[None, :]
        s += tl.load(at + block * 2 * cols, mask, other=0.0)
        h += tl.load(at + block * 2 * cols + cols, mask, other=0.0)
    return s, h


@triton.jit
def columns(args, tensor, unit, CFG: tl.constexpr):
    """Column moments, from the sums of the units."""
    table_row = memory.table_row(args, tensor, CFG)
    rows = memory.size(table_row, memory.ROWS, CFG)
    cols = memory.size(table_row, memory.COLS, CFG)
    tiles = memory.cut(args, tensor, memory.TILES)
    batch = unit // tiles
    col = unit % tiles * CFG.WIDTH + tl.arange(0, CFG.WIDTH)
    s, h = sums_of_units(args, tensor, batch, col, cols, CFG)
    mean = mean_of_rows(args, tensor, batch, rows, CFG)
    mean_square = div(tl.sum(s, 0), rows.to(CFG.W)).to(CFG.T)
    h = tl.sum(h, 0).to(CFG.T)
    finish_columns(args, tensor, batch, unit % tiles, col, mean, mean_square, h, CFG)
