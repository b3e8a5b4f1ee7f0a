"""Adafactor on a batch of tiny matrices, as of 3 x 3 convolutions: each thread takes a matrix."""

import triton
import triton.language as tl

from . import memory, rules, scalars
from . import tensor as whole
from .matrix import least_or_inf, new_moment
from .numbers import div

VECTOR = tl.constexpr(False)


@triton.jit
def matrices_of(unit, batch, MATRICES: tl.constexpr):
    matrix = unit.to(tl.int64) * MATRICES + tl.arange(0, MATRICES)
    return matrix, matrix < batch


@triton.jit
def mean_of_rows(
    lists, tensor, row_at, ok, rows, T: tl.constexpr, W: tl.constexpr, MATRICES: tl.constexpr
):
    sum_of_rows = tl.zeros((MATRICES,), W)
    for i in range(0, rows):
        sum_of_rows += tl.load(row_at + i, ok, other=1.0).to(W)
    floor = scalars.get(memory.scalar_row(lists, tensor), scalars.MEAN_FLOOR, T)
    return rules.floored_mean(div(sum_of_rows, rows.to(W)).to(T), floor)


@triton.jit
def read(
    lists,
    tensor,
    unit,
    DTYPES: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
    MATRICES: tl.constexpr,
):
    """Row and column moments, and the sum of u^2."""
    cells = memory.cells(lists, tensor, DTYPES, VECTOR)
    rows = memory.size(cells, memory.ROWS, DTYPES)
    cols = memory.size(cells, memory.COLS, DTYPES)
    matrix, ok = matrices_of(unit, memory.size(cells, memory.BATCH, DTYPES), MATRICES)
    scalar_row = memory.scalar_row(lists, tensor)
    decay_rates = scalars.decay_rates(scalar_row, T)
    scale = memory.gradient_scale(lists, tensor, T)
    g_at = memory.slot(cells, 1, DTYPES, False) + matrix * rows * cols
    row_at = memory.slot(cells, 2, DTYPES, False) + matrix * rows
    col_at = memory.slot(cells, 3, DTYPES, False) + matrix * cols
    for i in range(0, rows):
        square = tl.zeros((MATRICES,), T)
        for j in range(0, cols):
            g = tl.load(g_at + i * cols + j, ok, other=0.0).to(T) * scale
            square += g * g
        old = tl.load(row_at + i, ok, other=1.0).to(T)
        mean_square = div(square, cols.to(T))
        tl.store(row_at + i, new_moment(old, mean_square, decay_rates, DTYPES[2]), ok)
    tl.debug_barrier()  # what was stored is loaded again, by the same threads or others
    mean = mean_of_rows(lists, tensor, row_at, ok, rows, T, W, MATRICES)
    energy = tl.zeros((MATRICES,), W)
    least_col = tl.full((MATRICES,), float("inf"), T)
    for j in range(0, cols):
        s = tl.zeros((MATRICES,), T)
        h = tl.zeros((MATRICES,), T)
        for i in range(0, rows):
            g = tl.load(g_at + i * cols + j, ok, other=0.0).to(T) * scale
            s += g * g
            h += g * g * rules.inverse(tl.load(row_at + i, ok, other=1.0).to(T))
        old = tl.load(col_at + j, ok, other=1.0).to(T)
        stored = new_moment(old, div(s, rows.to(T)), decay_rates, DTYPES[3])
        tl.store(col_at + j, stored, ok)
        moment = stored.to(T)
        energy += rules.col_energy(h, moment, mean).to(W)
        least_col = tl.minimum(least_col, least_or_inf(moment, ok))
    tl.debug_barrier()
    cap = scalars.get(scalar_row, scalars.CAP, T)
    if cap < float("inf"):
        least_row = tl.full((MATRICES,), float("inf"), T)
        for i in range(0, rows):
            moment = tl.load(row_at + i, ok, other=1.0).to(T)
            least_row = tl.minimum(least_row, least_or_inf(moment, ok))
        exact = tl.zeros((MATRICES,), W)
        for i in range(0, rows):
            r = rules.row_factor(tl.load(row_at + i, ok, other=1.0).to(T), mean)
            for j in range(0, cols):
                c = rules.col_factor(tl.load(col_at + j, ok, other=1.0).to(T))
                g = tl.load(g_at + i * cols + j, ok, other=0.0).to(T) * scale
                u = rules.precondition(g, r * c, cap)
                exact += (u * u).to(W)
        energy = tl.where(rules.is_capped(least_row, least_col, mean, cap), exact, energy)
    u_at = memory.sums(lists, tensor, memory.U_AT)
    tl.store(u_at + unit, tl.sum(tl.where(ok, energy, 0.0), 0))
    if scalars.is_scaled(scalar_row, T):
        p_at = memory.slot(cells, 0, DTYPES, False) + matrix * rows * cols
        squares = tl.zeros((MATRICES,), T)
        for k in range(0, rows * cols):
            p = tl.load(p_at + k, ok, other=0.0).to(T)
            squares += p * p
        tl.store(memory.sums(lists, tensor, memory.P_AT) + unit, tl.sum(squares.to(W), 0))


@triton.jit
def update(
    lists,
    tensor,
    unit,
    UPDATE: tl.constexpr,
    DTYPES: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
    MATRICES: tl.constexpr,
):
    """The second read: parameter and momentum."""
    cells = memory.cells(lists, tensor, DTYPES, VECTOR)
    rows = memory.size(cells, memory.ROWS, DTYPES)
    cols = memory.size(cells, memory.COLS, DTYPES)
    matrix, ok = matrices_of(unit, memory.size(cells, memory.BATCH, DTYPES), MATRICES)
    cap = scalars.get(memory.scalar_row(lists, tensor), scalars.CAP, T)
    scale = memory.gradient_scale(lists, tensor, T)
    row_at = memory.slot(cells, 2, DTYPES, False) + matrix * rows
    col_at = memory.slot(cells, 3, DTYPES, False) + matrix * cols
    mean = mean_of_rows(lists, tensor, row_at, ok, rows, T, W, MATRICES)
    writer = whole.writer(lists, tensor, cells, DTYPES, memory.MATRIX_MOMENTUM, T, False)
    g_at = memory.slot(cells, 1, DTYPES, False)
    squares = tl.zeros((MATRICES,), T)
    for i in range(0, rows):
        r = rules.row_factor(tl.load(row_at + i, ok, other=1.0).to(T), mean)
        for j in range(0, cols):
            c = rules.col_factor(tl.load(col_at + j, ok, other=1.0).to(T))
            place = matrix * rows * cols + i * cols + j
            g = tl.load(g_at + place, ok, other=0.0).to(T) * scale
            u = rules.precondition(g, r * c, cap)
            squares += whole.write(writer, place, ok, u, UPDATE, DTYPES, memory.MATRIX_MOMENTUM, T)
    if whole.sums_late(lists, tensor, cells, DTYPES, T):
        late_at = memory.sums(lists, tensor, memory.LATE_AT)
        tl.store(late_at + unit, tl.sum(squares.to(W), 0))
