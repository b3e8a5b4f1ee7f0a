"""What a factored rule does with a whole tensor: step size and decay, rms(p), and the update of
elements once they are known."""

import triton
import triton.language as tl

from . import memory, rules, scalars
from .numbers import rounded


@triton.jit
def root_mean_square(
    cells, sum_of_squares, DTYPES: tl.constexpr, W: tl.constexpr, VECTOR: tl.constexpr
):
    elements = memory.size(cells, memory.ELEMENTS, DTYPES)
    if not VECTOR:
        rows = memory.size(cells, memory.ROWS, DTYPES)
        elements = elements * rows * memory.size(cells, memory.COLS, DTYPES)
    return rules.rms(sum_of_squares, elements.to(W))


@triton.jit
def store_rms(cells, rms, DTYPES: tl.constexpr, T: tl.constexpr):
    address = memory.size(cells, memory.RMS, DTYPES)
    if address != 0:
        tl.store(address.to(tl.pointer_type(T)), rms.to(T))


@triton.jit
def finish(
    lists, tensor, DTYPES: tl.constexpr, T: tl.constexpr, W: tl.constexpr, VECTOR: tl.constexpr
):
    """Step size and decay of a tensor, from the sums of its units."""
    cells = memory.cells(lists, tensor, DTYPES, VECTOR)
    row = memory.scalar_row(lists, tensor)
    u_at = memory.sums(lists, tensor, memory.U_AT)
    u_count = memory.cut(lists, tensor, memory.U_COUNT)
    exact_count = memory.cut(lists, tensor, memory.EXACT_COUNT)
    # As the kernels that may have left exact sums see the cap: rounded, it can be infinite.
    if (scalars.get(row, scalars.CAP, T) < float("inf")) & (exact_count > 0):
        u_at = memory.sums(lists, tensor, memory.LATE_AT)
        u_count = exact_count
    rms_u = root_mean_square(cells, memory.total(u_at, u_count, 1, W, 1024), DTYPES, W, VECTOR)
    rms_p = tl.zeros((), W)
    if scalars.is_scaled(row, T):
        p_at = memory.sums(lists, tensor, memory.P_AT)
        p_count = memory.cut(lists, tensor, memory.P_COUNT)
        sum_p = memory.total(p_at, p_count, 1, W, 1024)
        rms_p = root_mean_square(cells, sum_p, DTYPES, W, VECTOR)
        store_rms(cells, rms_p, DTYPES, T)
    step_size, decay = rules.finish(
        rms_p,
        rms_u,
        scalars.get(row, scalars.RHO, W),
        scalars.get(row, scalars.SCALED, W),
        scalars.get(row, scalars.SCALE_FLOOR, W),
        scalars.get(row, scalars.CLIP, W),
        scalars.get(row, scalars.DIVISOR_IF_NAN, W),
        scalars.get(row, scalars.DECAY_FIXED, W),
        scalars.get(row, scalars.DECAY_SCALED, W),
    )
    step_at = memory.sums(lists, tensor, memory.STEP_AT)
    tl.store(step_at, step_size)
    tl.store(step_at + 1, decay)


@triton.jit
def sums_late(lists, tensor, cells, DTYPES: tl.constexpr, T: tl.constexpr):
    """Whether the second read sums p^2, for those who want to see rms(p)."""
    row = memory.scalar_row(lists, tensor)
    wanted = memory.size(cells, memory.RMS, DTYPES) != 0
    return wanted & (scalars.is_scaled(row, T) == 0)


@triton.jit
def report(
    lists, tensor, DTYPES: tl.constexpr, T: tl.constexpr, W: tl.constexpr, VECTOR: tl.constexpr
):
    """rms(p), where the step did not need it."""
    cells = memory.cells(lists, tensor, DTYPES, VECTOR)
    if sums_late(lists, tensor, cells, DTYPES, T):
        late_at = memory.sums(lists, tensor, memory.LATE_AT)
        late_count = memory.cut(lists, tensor, memory.LATE_COUNT)
        sum_p = memory.total(late_at, late_count, 1, W, 1024)
        store_rms(cells, root_mean_square(cells, sum_p, DTYPES, W, VECTOR), DTYPES, T)


@triton.jit
def writer(
    lists,
    tensor,
    cells,
    DTYPES: tl.constexpr,
    MOMENTUM: tl.constexpr,  # the slot of the momentum, where the rule has one
    T: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """What `write` needs of a tensor, loaded once: addresses and numbers."""
    step_at = memory.sums(lists, tensor, memory.STEP_AT)
    row = memory.scalar_row(lists, tensor)
    return (
        memory.slot(cells, 0, DTYPES, ALIGNED),
        memory.slot(cells, MOMENTUM if MOMENTUM < len(DTYPES) else 0, DTYPES, ALIGNED),
        tl.load(step_at).to(T),
        tl.load(step_at + 1).to(T),
        scalars.get(row, scalars.BETA1, T),
        scalars.get(row, scalars.ONE_MINUS_BETA1, T),
    )


@triton.jit
def write(
    writer,
    place,
    mask,
    u,
    UPDATE: tl.constexpr,
    DTYPES: tl.constexpr,
    MOMENTUM: tl.constexpr,
    T: tl.constexpr,
):
    """Writes the elements at `place`; returns the squares of the parameter as it was."""
    p_at, m_at, step_size, decay, beta1, one_minus_beta1 = writer
    p = tl.load(p_at + place, mask, other=0.0).to(T)
    if MOMENTUM < len(DTYPES):
        m = tl.load(m_at + place, mask, other=0.0).to(T)
        new_p, new_m = UPDATE(p, m, u, step_size, decay, beta1, one_minus_beta1)
        tl.store(m_at + place, rounded(new_m, DTYPES[MOMENTUM]), mask)
        tl.store(p_at + place, rounded(new_p, DTYPES[0]), mask)
    else:
        new_p = UPDATE(p, u, step_size, decay)
        tl.store(p_at + place, rounded(new_p[0], DTYPES[0]), mask)
    return p * p
