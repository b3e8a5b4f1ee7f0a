"""Adafactor on matrices of any size but tiny: the items of work that `cut.py` names.

A tile holds whole rows of the gradient on chip, so that the sums along its rows and, with the rows'
new second moments, down its columns cost one read. Places are 64-bit numbers. The sums of a unit go
to the scratch and are added up in a fixed order: there are no atomic adds.
"""

import triton
import triton.language as tl

from . import memory, rules, scalars
from .numbers import div, rounded

VECTOR = tl.constexpr(False)


@triton.jit
def unit_of(lists, tensor, unit, BLOCKS):
    """(matrix of the batch, block of rows, chunk of columns) of a unit of work."""
    chunks = memory.count(lists, tensor, memory.CHUNKS)
    blocks = memory.count(lists, tensor, BLOCKS)
    block = unit // chunks
    return (block // blocks).to(tl.int64), (block % blocks).to(tl.int64), unit % chunks


@triton.jit
def new_moment(old, mean_square, decay_rates, DTYPE: tl.constexpr):
    """The second moment, rounded as it will be stored."""
    beta2, one_minus_beta2, eps_stat = decay_rates
    return rounded(rules.second_moment(old, mean_square, beta2, one_minus_beta2, eps_stat), DTYPE)


@triton.jit
def rows_of(lists, tensor, block, rows, HEIGHT):
    """The first row of a block of rows, and how many it has."""
    height = memory.cut(lists, tensor, HEIGHT)
    first = block * height
    return first, tl.minimum(height, rows - first).to(tl.int32)


@triton.jit
def tile(rows_left, cols_left, cols, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """Which rows and columns of a tile are in the matrix, and where its elements are, from its
    first one on: 32-bit numbers, since a tile is either one row high or as wide as the matrix."""
    row = tl.arange(0, HEIGHT)
    col = tl.arange(0, WIDTH)
    place = row[:, None] * cols.to(tl.int32) + col[None, :]
    return row < rows_left, col < cols_left, place


@triton.jit
def row_sums(
    lists,
    tensor,
    unit,
    DTYPES: tl.constexpr,
    T: tl.constexpr,
    ALIGNED: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
):
    """Sums of g^2 along the rows of a chunk of columns, for rows that no tile holds."""
    cells = memory.cells(lists, tensor, DTYPES, VECTOR)
    rows = memory.size(cells, memory.ROWS, DTYPES)
    cols = memory.aligned_size(cells, memory.COLS, DTYPES, ALIGNED)
    batch, block, chunk = unit_of(lists, tensor, unit, memory.ROW_BLOCKS)
    chunks = memory.cut(lists, tensor, memory.CHUNKS)
    scale = memory.gradient_scale(lists, tensor, T)
    first, count = rows_of(lists, tensor, block, rows, memory.UNIT_ROWS)
    left = chunk.to(tl.int64) * WIDTH
    g_at = memory.slot(cells, 1, DTYPES, ALIGNED) + (batch * rows + first) * cols + left
    out = memory.partials(lists, tensor) + (batch * rows + first) * chunks + chunk
    HEIGHT: tl.constexpr = TILE // WIDTH
    for row in range(0, count, HEIGHT):
        row_ok, col_ok, place = tile(count - row, cols - left, cols, HEIGHT, WIDTH)
        mask = row_ok[:, None] & col_ok[None, :]
        g = tl.load(g_at + row * cols + place, mask, other=0.0).to(T) * scale
        tl.store(out + (row + tl.arange(0, HEIGHT)) * chunks, tl.sum(g * g, 1), row_ok)


@triton.jit
def row_moments(
    lists,
    tensor,
    unit,
    DTYPES: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The row moments of a block of rows, from the sums of its chunks."""
    cells = memory.cells(lists, tensor, DTYPES, VECTOR)
    rows = memory.size(cells, memory.ROWS, DTYPES)
    cols = memory.size(cells, memory.COLS, DTYPES)
    blocks = memory.cut(lists, tensor, memory.ROW_BLOCKS)
    chunks = memory.cut(lists, tensor, memory.CHUNKS)
    unit_rows = memory.cut(lists, tensor, memory.UNIT_ROWS)
    decay_rates = scalars.decay_rates(memory.scalar_row(lists, tensor), T)
    batch = unit // blocks
    row_at = memory.slot(cells, 2, DTYPES, False) + batch * rows
    sums_at = memory.partials(lists, tensor) + batch * rows * chunks
    first = unit % blocks * unit_rows
    end = tl.minimum(first + unit_rows, rows)
    sum_of_lane = tl.zeros((WIDTH,), W)
    least_of_lane = tl.full((WIDTH,), float("inf"), W)
    for start in range(first, end, WIDTH):
        row = start + tl.arange(0, WIDTH)
        ok = row < end
        square = tl.zeros((WIDTH,), W)
        for chunk in range(0, chunks):
            square += tl.load(sums_at + row * chunks + chunk, ok, other=0.0)
        old = tl.load(row_at + row, ok, other=1.0).to(T)
        new = new_moment(old, div(square, cols.to(W)).to(T), decay_rates, DTYPES[2])
        tl.store(row_at + row, new, ok)
        sum_of_lane += tl.where(ok, new.to(W), 0.0)
        least_of_lane = tl.minimum(least_of_lane, least_or_inf(new.to(W), ok))
    store_rows(lists, tensor, unit, tl.sum(sum_of_lane, 0), tl.min(least_of_lane, 0))


@triton.jit
def least_or_inf(x, ok):
    """What a minimum looks at: a nan counts for nothing."""
    return tl.where(ok & (x == x), x, float("inf"))


@triton.jit
def store_rows(lists, tensor, block, sum_of_rows, least_row):
    at = memory.sums(lists, tensor, memory.ROWS_AT) + 2 * block
    tl.store(at, sum_of_rows)
    tl.store(at + 1, least_row)


@triton.jit
def mean_of_rows(lists, tensor, batch, rows, T: tl.constexpr, W: tl.constexpr):
    """The mean of a matrix's row moments, floored, from the sums of its blocks."""
    blocks = memory.cut(lists, tensor, memory.ROW_BLOCKS)
    at = memory.sums(lists, tensor, memory.ROWS_AT) + 2 * batch * blocks
    mean = div(memory.total(at, blocks, 2, W, 128), rows.to(W)).to(T)
    floor = scalars.get(memory.scalar_row(lists, tensor), scalars.MEAN_FLOOR, T)
    return rules.floored_mean(mean, floor)


@triton.jit
def statistics(
    lists,
    tensor,
    unit,
    DTYPES: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
    ALIGNED: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    KNOWN_ROWS: tl.constexpr,  # rows are longer than a tile, so their moments were made before
):
    """Row moments of a unit, and its sums of g^2 and g^2 / row down the columns. If the unit has
    all the rows of its matrix, column moments too."""
    cells = memory.cells(lists, tensor, DTYPES, VECTOR)
    rows = memory.size(cells, memory.ROWS, DTYPES)
    cols = memory.aligned_size(cells, memory.COLS, DTYPES, ALIGNED)
    batch, block, chunk = unit_of(lists, tensor, unit, memory.ROW_BLOCKS)
    first, count = rows_of(lists, tensor, block, rows, memory.UNIT_ROWS)
    left = chunk.to(tl.int64) * WIDTH
    blocks = memory.cut(lists, tensor, memory.ROW_BLOCKS)
    scalar_row = memory.scalar_row(lists, tensor)
    decay_rates = scalars.decay_rates(scalar_row, T)
    scale = memory.gradient_scale(lists, tensor, T)
    g_at = memory.slot(cells, 1, DTYPES, ALIGNED) + (batch * rows + first) * cols + left
    row_at = memory.slot(cells, 2, DTYPES, False) + batch * rows + first
    HEIGHT: tl.constexpr = TILE // WIDTH
    s = tl.zeros((HEIGHT, WIDTH), T)
    h = tl.zeros((HEIGHT, WIDTH), T)
    sum_of_lane = tl.zeros((HEIGHT,), W)
    least_of_lane = tl.full((HEIGHT,), float("inf"), T)
    # Two tiles ahead are on their way to shared memory while one is worked on.
    for row in tl.range(0, count, HEIGHT, num_stages=3):
        row_ok, col_ok, place = tile(count - row, cols - left, cols, HEIGHT, WIDTH)
        mask = row_ok[:, None] & col_ok[None, :]
        g = tl.load(g_at + row * cols + place, mask, other=0.0).to(T) * scale
        square = g * g
        # Rows beyond the end weigh nothing: their squares are zero and their moment is one.
        moment_at = row_at + row + tl.arange(0, HEIGHT)
        moment = tl.load(moment_at, row_ok, other=1.0).to(T)
        if not KNOWN_ROWS:
            # The threads that hold a row's moment are those that add the row up, so that all have
            # loaded it when one stores it.
            mean_square = div(tl.sum(square, 1), cols.to(T))
            stored = new_moment(moment, mean_square, decay_rates, DTYPES[2])
            tl.store(moment_at, stored, row_ok)
            moment = tl.where(row_ok, stored.to(T), 1.0)
            sum_of_lane += tl.where(row_ok, moment, 0.0).to(W)
            least_of_lane = tl.minimum(least_of_lane, least_or_inf(moment, row_ok))
        s += square
        h += square * rules.inverse(moment)[:, None]
    if not KNOWN_ROWS:
        least_row = tl.min(least_of_lane, 0).to(W)
        store_rows(lists, tensor, batch * blocks + block, tl.sum(sum_of_lane, 0), least_row)
    col = left + tl.arange(0, WIDTH)
    if (blocks == 1) & (WIDTH <= memory.FLAT_WIDTH):
        if KNOWN_ROWS:
            mean = mean_of_rows(lists, tensor, batch, rows, T, W)
        else:
            mean = div(tl.sum(sum_of_lane, 0), rows.to(W)).to(T)
            mean = rules.floored_mean(mean, scalars.get(scalar_row, scalars.MEAN_FLOOR, T))
        mean_square = div(tl.sum(s, 0), rows.to(T))
        h_sum = tl.sum(h, 0)
        finish_columns(lists, tensor, batch, chunk, col, mean, mean_square, h_sum, DTYPES, T, W)
    else:
        out = memory.partials(lists, tensor) + (batch * blocks + block) * 2 * cols
        tl.store(out + col, tl.sum(s, 0), col < cols)
        tl.store(out + cols + col, tl.sum(h, 0), col < cols)


@triton.jit
def finish_columns(
    lists,
    tensor,
    batch,
    tile,
    col,
    mean,
    mean_square,
    h,
    DTYPES: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
):
    """Column moments from the sums down whole columns, and these columns' part of sum(u^2)."""
    cells = memory.cells(lists, tensor, DTYPES, VECTOR)
    cols = memory.size(cells, memory.COLS, DTYPES)
    ok = col < cols
    col_at = memory.slot(cells, 3, DTYPES, False) + batch * cols + col
    old = tl.load(col_at, ok, other=1.0).to(T)
    # Several threads may hold a column; one of them will store it, after all have loaded it.
    tl.debug_barrier()
    decay_rates = scalars.decay_rates(memory.scalar_row(lists, tensor), T)
    stored = new_moment(old, mean_square, decay_rates, DTYPES[3])
    tl.store(col_at, stored, ok)
    moment = stored.to(T)
    energy = tl.where(ok, rules.col_energy(h, moment, mean), 0.0)
    at = batch * memory.cut(lists, tensor, memory.TILES) + tile
    tl.store(memory.sums(lists, tensor, memory.U_AT) + at, tl.sum(energy, 0).to(W))
    least = tl.min(least_or_inf(moment, ok), 0).to(W)
    tl.store(memory.sums(lists, tensor, memory.LEAST_COL_AT) + at, least)
    if tile == 0:
        tl.store(memory.sums(lists, tensor, memory.MEAN_AT) + batch, mean.to(W))


@triton.jit
def columns(
    lists,
    tensor,
    unit,
    DTYPES: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
):
    """Sums down whole columns, from those of the units."""
    cells = memory.cells(lists, tensor, DTYPES, VECTOR)
    rows = memory.size(cells, memory.ROWS, DTYPES)
    cols = memory.size(cells, memory.COLS, DTYPES)
    tiles = memory.cut(lists, tensor, memory.TILES)
    blocks = memory.cut(lists, tensor, memory.ROW_BLOCKS)
    batch = unit // tiles
    col = unit % tiles * WIDTH + tl.arange(0, WIDTH)
    at = memory.partials(lists, tensor) + batch * blocks * 2 * cols + col[None, :]
    HEIGHT: tl.constexpr = TILE // WIDTH
    s = tl.zeros((HEIGHT, WIDTH), W)
    h = tl.zeros((HEIGHT, WIDTH), W)
    for first in range(0, blocks, HEIGHT):
        block = (first + tl.arange(0, HEIGHT))[:, None]
        mask = (block < blocks) & (col < cols)[None, :]
        s += tl.load(at + block * 2 * cols, mask, other=0.0)
        h += tl.load(at + block * 2 * cols + cols, mask, other=0.0)
    mean = mean_of_rows(lists, tensor, batch, rows, T, W)
    mean_square = div(tl.sum(s, 0), rows.to(W)).to(T)
    h = tl.sum(h, 0).to(T)
    finish_columns(lists, tensor, batch, unit % tiles, col, mean, mean_square, h, DTYPES, T, W)
