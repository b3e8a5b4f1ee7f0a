"""Adafactor on vectors, which keep an unfactored second moment. Each piece is read twice."""

import triton
import triton.language as tl

from . import memory, noise, rules, scalars
from . import tensor as whole
from .matrix import new_moment
from .stored import load_slot


@triton.jit
def read(args, tensor, unit, CFG: tl.constexpr):
    """The second moment, and the sums of u^2 and p^2."""
    table_row = memory.table_row(args, tensor, CFG)
    elements = memory.aligned_size(table_row, memory.ELEMENTS, CFG)
    row = memory.scalar_row(args, tensor)
    decay_rates = scalars.decay_rates(row, CFG.T)
    cap = scalars.get(row, scalars.CAP, CFG.T)
    scale = memory.gradient_scale(args, tensor, CFG)
    sums_p = whole.sums_early(args, tensor, table_row, CFG)
    p_slot = memory.stored_slot(table_row, 0, CFG)
    g_at = memory.slot(table_row, 1, CFG)
    v_at = memory.slot(table_row, 2, CFG)
    u_squares = tl.full((CFG.WIDTH,), 0.0, CFG.T)
    p_squares = tl.full((CFG.WIDTH,), 0.0, CFG.T)
    start = unit.to(tl.int64) * memory.VECTOR_UNIT
    for first in range(start, tl.minimum(start + memory.VECTOR_UNIT, elements), CFG.WIDTH):
        i = first + tl.arange(0, CFG.WIDTH)
        mask = i < elements
        g = tl.load(g_at + i, mask, other=0.0).to(CFG.T) * scale
        old = tl.load(v_at + i, mask, other=1.0).to(CFG.T)
        v = new_moment(old, g * g, decay_rates, CFG.DTYPES[2])
        tl.store(v_at + i, v, mask)
        u = rules.precondition(g, rules.col_factor(v.to(CFG.T)), cap)
        u_squares += tl.where(mask, u * u, 0.0)
        if sums_p:
            p = load_slot(p_slot, i, mask, 0.0, None, None, 0, CFG)
            p_squares += p * p
    tl.store(memory.sums(args, tensor, memory.U_AT) + unit, tl.sum(u_squares.to(CFG.W), 0))
    tl.store(memory.sums(args, tensor, memory.P_AT) + unit, tl.sum(p_squares.to(CFG.W), 0))


@triton.jit
def update(args, tensor, unit, UPDATE: tl.constexpr, CFG: tl.constexpr):
    """The second read: parameter and momentum."""
    table_row = memory.table_row(args, tensor, CFG)
    elements = memory.aligned_size(table_row, memory.ELEMENTS, CFG)
    cap = scalars.get(memory.scalar_row(args, tensor), scalars.CAP, CFG.T)
    scale = memory.gradient_scale(args, tensor, CFG)
    writer = whole.writer(args, tensor, table_row, CFG)
    of = memory.noise_of(args, tensor, elements)
    g_at = memory.slot(table_row, 1, CFG)
    v_at = memory.slot(table_row, 2, CFG)
    squares = tl.full((CFG.WIDTH,), 0.0, CFG.T)
    start = unit.to(tl.int64) * memory.VECTOR_UNIT
    for first in range(start, tl.minimum(start + memory.VECTOR_UNIT, elements), CFG.WIDTH):
        i = first + tl.arange(0, CFG.WIDTH)
        mask = i < elements
        g = tl.load(g_at + i, mask, other=0.0).to(CFG.T) * scale
        v = tl.load(v_at + i, mask, other=1.0).to(CFG.T)
        u = rules.precondition(g, rules.col_factor(v), cap)
        place = noise.places(of, first, tl.arange(0, CFG.WIDTH))
        squares += whole.write(writer, i, mask, of, place, None, None, u, UPDATE, CFG)
    if whole.sums_late(args, tensor, table_row, CFG):
        late_at = memory.sums(args, tensor, memory.LATE_AT)
        tl.store(late_at + unit, tl.sum(squares.to(CFG.W), 0))
