"""Adafactor on vectors, which keep an unfactored second moment: pieces of a vector, read twice."""

import triton
import triton.language as tl

from . import memory, rules, scalars
from . import tensor as whole
from .matrix import new_moment


@triton.jit
def read(lists, tensor, unit, CFG: tl.constexpr):
    """The second moment, and the sums of u^2 and p^2."""
    cells = memory.cells(lists, tensor, CFG)
    elements = memory.aligned_size(cells, memory.ELEMENTS, CFG)
    row = memory.scalar_row(lists, tensor)
    decay_rates = scalars.decay_rates(row, CFG.T)
    cap = scalars.get(row, scalars.CAP, CFG.T)
    scale = memory.gradient_scale(lists, tensor, CFG)
    scaled = scalars.is_scaled(row, CFG.T)
    p_at = memory.slot(cells, 0, CFG)
    g_at = memory.slot(cells, 1, CFG)
    v_at = memory.slot(cells, 2, CFG)
    u_squares = tl.full((CFG.WIDTH,), 0.0, CFG.T)
    p_squares = tl.full((CFG.WIDTH,), 0.0, CFG.T)
    start = unit.to(tl.int64) * memory.PIECE
    for first in range(start, tl.minimum(start + memory.PIECE, elements), CFG.WIDTH):
        i = first + tl.arange(0, CFG.WIDTH)
        mask = i < elements
        g = tl.load(g_at + i, mask, other=0.0).to(CFG.T) * scale
        old = tl.load(v_at + i, mask, other=1.0).to(CFG.T)
        v = new_moment(old, g * g, decay_rates, CFG.DTYPES[2])
        tl.store(v_at + i, v, mask)
        u = rules.precondition(g, rules.col_factor(v.to(CFG.T)), cap)
        u_squares += tl.where(mask, u * u, 0.0)
        if scaled:
            p = tl.load(p_at + i, mask, other=0.0).to(CFG.T)
            p_squares += p * p
    tl.store(memory.sums(lists, tensor, memory.U_AT) + unit, tl.sum(u_squares.to(CFG.W), 0))
    tl.store(memory.sums(lists, tensor, memory.P_AT) + unit, tl.sum(p_squares.to(CFG.W), 0))


@triton.jit
def update(lists, tensor, unit, UPDATE: tl.constexpr, CFG: tl.constexpr):
    """The second read: parameter and momentum."""
    cells = memory.cells(lists, tensor, CFG)
    elements = memory.aligned_size(cells, memory.ELEMENTS, CFG)
    cap = scalars.get(memory.scalar_row(lists, tensor), scalars.CAP, CFG.T)
    scale = memory.gradient_scale(lists, tensor, CFG)
    writer = whole.writer(lists, tensor, cells, CFG)
    g_at = memory.slot(cells, 1, CFG)
    v_at = memory.slot(cells, 2, CFG)
    squares = tl.full((CFG.WIDTH,), 0.0, CFG.T)
    start = unit.to(tl.int64) * memory.PIECE
    for first in range(start, tl.minimum(start + memory.PIECE, elements), CFG.WIDTH):
        i = first + tl.arange(0, CFG.WIDTH)
        mask = i < elements
        g = tl.load(g_at + i, mask, other=0.0).to(CFG.T) * scale
        v = tl.load(v_at + i, mask, other=1.0).to(CFG.T)
        u = rules.precondition(g, rules.col_factor(v), cap)
        squares += whole.write(writer, i, mask, u, UPDATE, CFG)
    if whole.sums_late(lists, tensor, cells, CFG):
        late_at = memory.sums(lists, tensor, memory.LATE_AT)
        tl.store(late_at + unit, tl.sum(squares.to(CFG.W), 0))
