"""Adafactor on matrices, once their moments are known: any few rows of a matrix are an item.

Column factors are made once for a run of columns, row factors once for each tile of it.
"""

import triton
import triton.language as tl

from . import memory, rules, scalars
from . import tensor as whole
from .matrix import VECTOR, rows_of, unit_of


@triton.jit
def elements(lists, tensor, unit, DTYPES: tl.constexpr):
    """Of an item: its matrix, first row, number of rows, first column, end of its columns."""
    cells = memory.cells(lists, tensor, DTYPES, VECTOR)
    rows = memory.size(cells, memory.ROWS, DTYPES)
    cols = memory.size(cells, memory.COLS, DTYPES)
    batch, block, chunk = unit_of(lists, tensor, unit, memory.UPDATE_BLOCKS)
    first, count = rows_of(lists, tensor, block, rows, memory.UPDATE_ROWS)
    chunk_cols = memory.chunk_cols(lists, tensor)
    left = chunk * chunk_cols
    return batch, first, count, left, tl.minimum(left + chunk_cols, cols)


@triton.jit
def squares(
    lists,
    tensor,
    unit,
    DTYPES: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
    ALIGNED: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
):
    """The sum of p^2, where the step depends on it."""
    if scalars.is_scaled(memory.scalar_row(lists, tensor), T):
        cells = memory.cells(lists, tensor, DTYPES, VECTOR)
        rows = memory.size(cells, memory.ROWS, DTYPES)
        cols = memory.aligned_size(cells, memory.COLS, DTYPES, ALIGNED)
        batch, first, count, left, right = elements(lists, tensor, unit, DTYPES)
        p_at = memory.slot(cells, 0, DTYPES, ALIGNED) + (batch * rows + first) * cols
        HEIGHT: tl.constexpr = TILE // WIDTH
        total = tl.zeros((HEIGHT, WIDTH), T)
        for start in range(left, right, WIDTH):
            col = start + tl.arange(0, WIDTH)
            for top in range(0, count, HEIGHT):
                row = top + tl.arange(0, HEIGHT)
                mask = (row < count)[:, None] & (col < cols)[None, :]
                place = row[:, None] * cols + col[None, :]
                p = tl.load(p_at + place, mask, other=0.0).to(T)
                total += p * p
        part = tl.sum(tl.sum(total, 0), 0).to(W)
        tl.store(memory.sums(lists, tensor, memory.P_AT) + unit, part)


@triton.jit
def is_capped(lists, tensor, batch, mean, cap, T: tl.constexpr, W: tl.constexpr):
    """Whether the cap changes any element of a matrix."""
    blocks = memory.cut(lists, tensor, memory.ROW_BLOCKS)
    tiles = memory.cut(lists, tensor, memory.TILES)
    rows_at = memory.sums(lists, tensor, memory.ROWS_AT) + 2 * batch * blocks
    cols_at = memory.sums(lists, tensor, memory.LEAST_COL_AT) + batch * tiles
    least_row = memory.least(rows_at + 1, blocks, 2, W, 128).to(T)
    least_col = memory.least(cols_at, tiles, 1, W, 128).to(T)
    return rules.is_capped(least_row, least_col, mean, cap)


@triton.jit
def energy(
    lists,
    tensor,
    unit,
    DTYPES: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
    ALIGNED: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
):
    """The sum of u^2: exact if the cap changes the matrix, else the first rows stand for all."""
    cap = scalars.get(memory.scalar_row(lists, tensor), scalars.CAP, T)
    if cap < float("inf"):
        cells = memory.cells(lists, tensor, DTYPES, VECTOR)
        rows = memory.size(cells, memory.ROWS, DTYPES)
        cols = memory.aligned_size(cells, memory.COLS, DTYPES, ALIGNED)
        batch, first, count, left, right = elements(lists, tensor, unit, DTYPES)
        mean = tl.load(memory.sums(lists, tensor, memory.MEAN_AT) + batch).to(T)
        part = tl.zeros((), W)
        if is_capped(lists, tensor, batch, mean, cap, T, W):
            scale = memory.gradient_scale(lists, tensor, T)
            g_at = memory.slot(cells, 1, DTYPES, ALIGNED) + (batch * rows + first) * cols
            row_at = memory.slot(cells, 2, DTYPES, False) + batch * rows + first
            col_at = memory.slot(cells, 3, DTYPES, False) + batch * cols
            HEIGHT: tl.constexpr = TILE // WIDTH
            total = tl.zeros((HEIGHT, WIDTH), T)
            for start in range(left, right, WIDTH):
                col = start + tl.arange(0, WIDTH)
                c = rules.col_factor(tl.load(col_at + col, col < cols, other=1.0).to(T))
                for top in range(0, count, HEIGHT):
                    row = top + tl.arange(0, HEIGHT)
                    mask = (row < count)[:, None] & (col < cols)[None, :]
                    place = row[:, None] * cols + col[None, :]
                    moment = tl.load(row_at + row, row < count, other=1.0).to(T)
                    r = rules.row_factor(moment, mean)
                    g = tl.load(g_at + place, mask, other=0.0).to(T) * scale
                    u = rules.precondition(g, r[:, None] * c[None, :], cap)
                    total += tl.where(mask, u * u, 0.0)
            part = tl.sum(tl.sum(total, 0), 0).to(W)
        elif (first == 0) & (left == 0):
            tiles = memory.cut(lists, tensor, memory.TILES)
            u_at = memory.sums(lists, tensor, memory.U_AT) + batch * tiles
            part = memory.total(u_at, tiles, 1, W, 128)
        tl.store(memory.sums(lists, tensor, memory.LATE_AT) + unit, part)


@triton.jit
def update(
    lists,
    tensor,
    unit,
    UPDATE: tl.constexpr,
    DTYPES: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
    ALIGNED: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
):
    """The second read: parameter and momentum."""
    cells = memory.cells(lists, tensor, DTYPES, VECTOR)
    rows = memory.size(cells, memory.ROWS, DTYPES)
    cols = memory.aligned_size(cells, memory.COLS, DTYPES, ALIGNED)
    batch, first, count, left, right = elements(lists, tensor, unit, DTYPES)
    mean = tl.load(memory.sums(lists, tensor, memory.MEAN_AT) + batch).to(T)
    cap = scalars.get(memory.scalar_row(lists, tensor), scalars.CAP, T)
    scale = memory.gradient_scale(lists, tensor, T)
    writer = whole.writer(lists, tensor, cells, DTYPES, memory.MATRIX_MOMENTUM, T, ALIGNED)
    g_at = memory.slot(cells, 1, DTYPES, ALIGNED)
    row_at = memory.slot(cells, 2, DTYPES, False) + batch * rows + first
    col_at = memory.slot(cells, 3, DTYPES, False) + batch * cols
    HEIGHT: tl.constexpr = TILE // WIDTH
    total = tl.zeros((HEIGHT, WIDTH), T)
    for start in range(left, right, WIDTH):
        col = start + tl.arange(0, WIDTH)
        c = rules.col_factor(tl.load(col_at + col, col < cols, other=1.0).to(T))
        for top in range(0, count, HEIGHT):
            row = top + tl.arange(0, HEIGHT)
            mask = (row < count)[:, None] & (col < cols)[None, :]
            place = (batch * rows + first + row)[:, None] * cols + col[None, :]
            r = rules.row_factor(tl.load(row_at + row, row < count, other=1.0).to(T), mean)
            g = tl.load(g_at + place, mask, other=0.0).to(T) * scale
            u = rules.precondition(g, r[:, None] * c[None, :], cap)
            total += whole.write(writer, place, mask, u, UPDATE, DTYPES, memory.MATRIX_MOMENTUM, T)
    if whole.sums_late(lists, tensor, cells, DTYPES, T):
        part = tl.sum(tl.sum(total, 0), 0).to(W)
        tl.store(memory.sums(lists, tensor, memory.LATE_AT) + unit, part)
