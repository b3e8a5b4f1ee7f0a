"""Adafactor on a batch of tiny matrices, such as 3 x 3 convolutions: one matrix per thread."""

import triton
import triton.language as tl

from . import memory, noise, rules, scalars
from . import tensor as whole
from .matrix import least_or_inf, new_moment
from .numbers import div
from .stored import load_slot, moved_slot


@triton.jit
def matrices_of(unit, batch, CFG: tl.constexpr):
    matrix = unit.to(tl.int64) * CFG.WIDTH + tl.arange(0, CFG.WIDTH)
    return matrix, matrix < batch


@triton.jit
def mean_of_rows(args, tensor, row_at, ok, rows, CFG: tl.constexpr):
    sum_of_rows = tl.full((CFG.WIDTH,), 0.0, CFG.W)
    for i in range(0, rows):
        sum_of_rows += tl.load(row_at + i, ok, other=1.0).to(CFG.W)
    floor = scalars.get(memory.scalar_row(args, tensor), scalars.MEAN_FLOOR, CFG.T)
    return rules.floored_mean(div(sum_of_rows, rows.to(CFG.W)).to(CFG.T), floor)


@triton.jit
def read(args, tensor, unit, CFG: tl.constexpr):
    """Row and column moments, and the sum of u^2."""
    table_row = memory.table_row(args, tensor, CFG)
    rows = memory.size(table_row, memory.ROWS, CFG)
    cols = memory.size(table_row, memory.COLS, CFG)
    matrix, ok = matrices_of(unit, memory.size(table_row, memory.BATCH, CFG), CFG)
    scalar_row = memory.scalar_row(args, tensor)
    decay_rates = scalars.decay_rates(scalar_row, CFG.T)
    scale = memory.gradient_scale(args, tensor, CFG)
    g_at = memory.slot_anywhere(table_row, 1, CFG) + matrix * rows * cols
    row_at = memory.slot_anywhere(table_row, 2, CFG) + matrix * rows
    col_at = memory.slot_anywhere(table_row, 3, CFG) + matrix * cols
    for i in range(0, rows):
        square = tl.full((CFG.WIDTH,), 0.0, CFG.T)
        for j in range(0, cols):
            g = tl.load(g_at + i * cols + j, ok, other=0.0).to(CFG.T) * scale
            square += g * g
        old = tl.load(row_at + i, ok, other=1.0).to(CFG.T)
        mean_square = div(square, cols.to(CFG.T))
        tl.store(row_at + i, new_moment(old, mean_square, decay_rates, CFG.DTYPES[2]), ok)
    tl.debug_barrier()  # other threads may load what was stored
    mean = mean_of_rows(args, tensor, row_at, ok, rows, CFG)
    sum_u2 = tl.full((CFG.WIDTH,), 0.0, CFG.W)
    least_col = tl.full((CFG.WIDTH,), float("inf"), CFG.T)
    for j in range(0, cols):
        s = tl.full((CFG.WIDTH,), 0.0, CFG.T)
        h = tl.full((CFG.WIDTH,), 0.0, CFG.T)
        for i in range(0, rows):
            g = tl.load(g_at + i * cols + j, ok, other=0.0).to(CFG.T) * scale
            s += g * g
            h += g * g * rules.inverse(tl.load(row_at + i, ok, other=1.0).to(CFG.T))
        old = tl.load(col_at + j, ok, other=1.0).to(CFG.T)
        stored = new_moment(old, div(s, rows.to(CFG.T)), decay_rates, CFG.DTYPES[3])
        tl.store(col_at + j, stored, ok)
        moment = stored.to(CFG.T)
        sum_u2 += rules.col_sum_u2(h, moment, mean).to(CFG.W)
        least_col = tl.minimum(least_col, least_or_inf(moment, ok))
    tl.debug_barrier()
    cap = scalars.get(scalar_row, scalars.CAP, CFG.T)
    if cap < float("inf"):
        least_row = tl.full((CFG.WIDTH,), float("inf"), CFG.T)
        for i in range(0, rows):
            moment = tl.load(row_at + i, ok, other=1.0).to(CFG.T)
            least_row = tl.minimum(least_row, least_or_inf(moment, ok))
        exact = tl.full((CFG.WIDTH,), 0.0, CFG.W)
        for i in range(0, rows):
            r = rules.row_factor(tl.load(row_at + i, ok, other=1.0).to(CFG.T), mean)
            for j in range(0, cols):
                c = rules.col_factor(tl.load(col_at + j, ok, other=1.0).to(CFG.T))
                g = tl.load(g_at + i * cols + j, ok, other=0.0).to(CFG.T) * scale
                u = rules.precondition(g, r * c, cap)
                exact += (u * u).to(CFG.W)
        sum_u2 = tl.where(rules.is_capped(least_row, least_col, mean, cap), exact, sum_u2)
    u_at = memory.sums(args, tensor, memory.U_AT)
    tl.store(u_at + unit, tl.sum(tl.where(ok, sum_u2, 0.0), 0))
    if whole.sums_early(args, tensor, table_row, CFG):
        p_slot = moved_slot(memory.stored_slot(table_row, 0, CFG), matrix * rows * cols)
        squares = tl.full((CFG.WIDTH,), 0.0, CFG.T)
        for k in range(0, rows * cols):
            p = load_slot(p_slot, k, ok, 0.0, None, None, 0, CFG)
            squares += p * p
        tl.store(memory.sums(args, tensor, memory.P_AT) + unit, tl.sum(squares.to(CFG.W), 0))


@triton.jit
def update(args, tensor, unit, UPDATE: tl.constexpr, CFG: tl.constexpr):
    """The second read: parameter and momentum."""
    table_row = memory.table_row(args, tensor, CFG)
    rows = memory.size(table_row, memory.ROWS, CFG)
    cols = memory.size(table_row, memory.COLS, CFG)
    batch = memory.size(table_row, memory.BATCH, CFG)
    matrix, ok = matrices_of(unit, batch, CFG)
    cap = scalars.get(memory.scalar_row(args, tensor), scalars.CAP, CFG.T)
    scale = memory.gradient_scale(args, tensor, CFG)
    row_at = memory.slot_anywhere(table_row, 2, CFG) + matrix * rows
    col_at = memory.slot_anywhere(table_row, 3, CFG) + matrix * cols
    mean = mean_of_rows(args, tensor, row_at, ok, rows, CFG)
    writer = whole.writer(args, tensor, table_row, CFG)
    of = memory.noise_of(args, tensor, batch * rows * cols)
    g_at = memory.slot_anywhere(table_row, 1, CFG)
    squares = tl.full((CFG.WIDTH,), 0.0, CFG.T)
    zero = tl.zeros((), tl.int32)
    for i in range(0, rows):
        r = rules.row_factor(tl.load(row_at + i, ok, other=1.0).to(CFG.T), mean)
        for j in range(0, cols):
            c = rules.col_factor(tl.load(col_at + j, ok, other=1.0).to(CFG.T))
            at = matrix * rows * cols + i * cols + j
            place = noise.places(of, at, zero)
            g = tl.load(g_at + at, ok, other=0.0).to(CFG.T) * scale
            u = rules.precondition(g, r * c, cap)
            squares += whole.write(writer, at, ok, of, place, None, None, u, UPDATE, CFG)
    if whole.sums_late(args, tensor, table_row, CFG):
        late_at = memory.sums(args, tensor, memory.LATE_AT)
        tl.store(late_at + unit, tl.sum(squares.to(CFG.W), 0))
