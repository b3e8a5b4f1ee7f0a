"""Adafactor on vectors, which keep an unfactored second moment: pieces of a vector, read twice."""

import triton
import triton.language as tl

from . import memory, rules, scalars
from . import tensor as whole
from .matrix import new_moment

VECTOR = tl.constexpr(True)


@triton.jit
def read(
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
    """The second moment, and the sums of u^2 and p^2."""
    cells = memory.cells(lists, tensor, DTYPES, VECTOR)
    elements = memory.aligned_size(cells, memory.ELEMENTS, DTYPES, ALIGNED)
    row = memory.scalar_row(lists, tensor)
    decay_rates = scalars.decay_rates(row, T)
    cap = scalars.get(row, scalars.CAP, T)
    scale = memory.gradient_scale(lists, tensor, T)
    scaled = scalars.is_scaled(row, T)
    p_at = memory.slot(cells, 0, DTYPES, ALIGNED)
    g_at = memory.slot(cells, 1, DTYPES, ALIGNED)
    v_at = memory.slot(cells, 2, DTYPES, ALIGNED)
    u_squares = tl.zeros((WIDTH,), T)
    p_squares = tl.zeros((WIDTH,), T)
    start = unit.to(tl.int64) * TILE
    for first in range(start, tl.minimum(start + TILE, elements), WIDTH):
        i = first + tl.arange(0, WIDTH)
        mask = i < elements
        g = tl.load(g_at + i, mask, other=0.0).to(T) * scale
        old = tl.load(v_at + i, mask, other=1.0).to(T)
        v = new_moment(old, g * g, decay_rates, DTYPES[2])
        tl.store(v_at + i, v, mask)
        u = rules.precondition(g, rules.col_factor(v.to(T)), cap)
        u_squares += tl.where(mask, u * u, 0.0)
        if scaled:
            p = tl.load(p_at + i, mask, other=0.0).to(T)
            p_squares += p * p
    tl.store(memory.sums(lists, tensor, memory.U_AT) + unit, tl.sum(u_squares.to(W), 0))
    tl.store(memory.sums(lists, tensor, memory.P_AT) + unit, tl.sum(p_squares.to(W), 0))


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
    elements = memory.aligned_size(cells, memory.ELEMENTS, DTYPES, ALIGNED)
    cap = scalars.get(memory.scalar_row(lists, tensor), scalars.CAP, T)
    scale = memory.gradient_scale(lists, tensor, T)
    writer = whole.writer(lists, tensor, cells, DTYPES, memory.VECTOR_MOMENTUM, T, ALIGNED)
    g_at = memory.slot(cells, 1, DTYPES, ALIGNED)
    v_at = memory.slot(cells, 2, DTYPES, ALIGNED)
    squares = tl.zeros((WIDTH,), T)
    start = unit.to(tl.int64) * TILE
    for first in range(start, tl.minimum(start + TILE, elements), WIDTH):
        i = first + tl.arange(0, WIDTH)
        mask = i < elements
        g = tl.load(g_at + i, mask, other=0.0).to(T) * scale
        v = tl.load(v_at + i, mask, other=1.0).to(T)
        u = rules.precondition(g, rules.col_factor(v), cap)
        squares += whole.write(writer, i, mask, u, UPDATE, DTYPES, memory.VECTOR_MOMENTUM, T)
    if whole.sums_late(lists, tensor, cells, DTYPES, T):
        late_at = memory.sums(lists, tensor, memory.LATE_AT)
        tl.store(late_at + unit, tl.sum(squares.to(W), 0))
