"""What a factored rule computes for a whole tensor: step size, decay and rms(p). Then the update of
its elements."""

import triton
import triton.language as tl

from . import memory, rules, scalars
from .stored import load_slot, store_slot


@triton.jit
def root_mean_square(table_row, sum_of_squares, CFG: tl.constexpr):
    """The root of the mean over the elements that are here."""
    elements = memory.size(table_row, memory.ELEMENTS, CFG)
    if not CFG.VECTOR:
        rows = memory.size(table_row, memory.ROWS, CFG)
        elements = elements * rows * memory.size(table_row, memory.COLS, CFG)
    return rules.rms(sum_of_squares, elements.to(CFG.W))


@triton.jit
def write_rms(table_row, rms, CFG: tl.constexpr):
    address = memory.size(table_row, memory.RMS, CFG)
    if address != 0:
        tl.store(address.to(tl.pointer_type(CFG.T)), rms.to(CFG.T))


@triton.jit
def sum_of_u2(args, tensor, CFG: tl.constexpr):
    """sum u^2 of a tensor, from the sums of its units."""
    row = memory.scalar_row(args, tensor)
    u_at = memory.sums(args, tensor, memory.U_AT)
    u_count = memory.cut(args, tensor, memory.U_COUNT)
    exact_count = memory.cut(args, tensor, memory.EXACT_COUNT)
    # The kernel that leaves exact sums tests the rounded cap, which can be infinite. So does this.
    if (scalars.get(row, scalars.CAP, CFG.T) < float("inf")) & (exact_count > 0):
        u_at = memory.sums(args, tensor, memory.LATE_AT)
        u_count = exact_count
    return memory.total(u_at, u_count, 1, CFG.W, 1024)


@triton.jit
def sum_of_p2(args, tensor, CFG: tl.constexpr):
    """sum p^2 of a tensor, from the sums of its units, if the step depends on it."""
    p_at = memory.sums(args, tensor, memory.P_AT)
    p_count = memory.cut(args, tensor, memory.P_COUNT)
    return memory.total(p_at, p_count, 1, CFG.W, 1024)


@triton.jit
def finish(args, tensor, CFG: tl.constexpr):
    """Step size and decay of a tensor, from the sums of its units."""
    table_row = memory.table_row(args, tensor, CFG)
    rms_u = root_mean_square(table_row, sum_of_u2(args, tensor, CFG), CFG)
    rms_p = tl.zeros((), CFG.W)
    if scalars.is_scaled(memory.scalar_row(args, tensor), CFG.T):
        rms_p = root_mean_square(table_row, sum_of_p2(args, tensor, CFG), CFG)
        write_rms(table_row, rms_p, CFG)
    store_step(args, tensor, rms_p, rms_u, CFG)


@triton.jit
def store_step(args, tensor, rms_p, rms_u, CFG: tl.constexpr):
    row = memory.scalar_row(args, tensor)
    step_size, decay = rules.finish(
        rms_p,
        rms_u,
        scalars.get(row, scalars.RHO, CFG.W),
        scalars.get(row, scalars.SCALED, CFG.W),
        scalars.get(row, scalars.SCALE_FLOOR, CFG.W),
        scalars.get(row, scalars.CLIP, CFG.W),
        scalars.get(row, scalars.DIVISOR_IF_NAN, CFG.W),
        scalars.get(row, scalars.DECAY_FIXED, CFG.W),
        scalars.get(row, scalars.DECAY_SCALED, CFG.W),
    )
    step_at = memory.sums(args, tensor, memory.STEP_AT)
    tl.store(step_at, step_size)
    tl.store(step_at + 1, decay)


@triton.jit
def sums_late(args, tensor, table_row, CFG: tl.constexpr):
    """Whether the second read sums p^2: the bucket keeps rms(p) and the step does not need it."""
    row = memory.scalar_row(args, tensor)
    wanted = memory.size(table_row, memory.RMS, CFG) != 0
    return wanted & (scalars.is_scaled(row, CFG.T) == 0)


@triton.jit
def sums_early(args, tensor, table_row, CFG: tl.constexpr):
    """Whether the first read sums p^2: the step needs it, or processes add it up for rms(p)."""
    is_wanted = scalars.is_scaled(memory.scalar_row(args, tensor), CFG.T)
    if CFG.SHARED:
        is_wanted = is_wanted | (memory.size(table_row, memory.RMS, CFG) != 0)
    return is_wanted


@triton.jit
def store_rms(args, tensor, CFG: tl.constexpr):
    """Stores rms(p) if the step did not need it."""
    table_row = memory.table_row(args, tensor, CFG)
    if sums_late(args, tensor, table_row, CFG):
        late_at = memory.sums(args, tensor, memory.LATE_AT)
        late_count = memory.cut(args, tensor, memory.LATE_COUNT)
        sum_p = memory.total(late_at, late_count, 1, CFG.W, 1024)
        write_rms(table_row, root_mean_square(table_row, sum_p, CFG), CFG)


@triton.jit
def writer(args, tensor, table_row, CFG: tl.constexpr):
    """What `write` needs, loaded once per unit: addresses and numbers."""
    step_at = memory.sums(args, tensor, memory.STEP_AT)
    row = memory.scalar_row(args, tensor)
    return (
        memory.stored_slot(table_row, 0, CFG),
        memory.stored_slot(table_row, CFG.MOMENTUM, CFG),
        tl.load(step_at).to(CFG.T),
        tl.load(step_at + 1).to(CFG.T),
        scalars.get(row, scalars.BETA1, CFG.T),
        scalars.get(row, scalars.ONE_MINUS_BETA1, CFG.T),
    )


@triton.jit
def write(writer, i, mask, of, place, block, block_ok, u, UPDATE: tl.constexpr, CFG: tl.constexpr):
    """Writes the elements at `i`. Returns the squares of the old parameter. What `store_slot` needs
    besides may be None."""
    p_slot, m_slot, step_size, decay, beta1, one_minus_beta1 = writer
    p = load_slot(p_slot, i, mask, 0.0, None, None, 0, CFG)
    if CFG.MOMENTUM > 0:
        m = load_slot(m_slot, i, mask, 0.0, block, block_ok, CFG.MOMENTUM, CFG)
        new_p, new_m = UPDATE(p, m, u, step_size, decay, beta1, one_minus_beta1)
        store_slot(m_slot, i, mask, new_m, of, place, block, block_ok, CFG.MOMENTUM, CFG)
        store_slot(p_slot, i, mask, new_p, of, place, None, None, 0, CFG)
    else:
        new_p = UPDATE(p, u, step_size, decay)
        store_slot(p_slot, i, mask, new_p[0], of, place, None, None, 0, CFG)
    return p * p
