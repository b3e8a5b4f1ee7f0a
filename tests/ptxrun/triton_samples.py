"""Triton kernels that test the PTX executor. Those named `planted_` are wrong on purpose."""

import triton
import triton.language as tl


@triton.jit
def sum_both_ways(x, rows, columns, n, m, R: tl.constexpr, C: tl.constexpr):
    """Sums a matrix along both axes."""
    i, j = tl.arange(0, R), tl.arange(0, C)
    inside = (i < n)[:, None] & (j < m)[None, :]
    tile = tl.load(x + i[:, None] * m + j[None, :], inside, other=0.0).to(tl.float32)
    tl.store(rows + i, tl.sum(tile, 1), i < n)
    tl.store(columns + j, tl.sum(tile, 0), j < m)


@triton.jit
def exact_arithmetic(a, b, out, n, BLOCK: tl.constexpr):
    """Writes x + y, x - y, x * y, x / y, sqrt(x) and x * y + x to six parts of `out`."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    x, y = tl.load(a + i, inside, other=0.0), tl.load(b + i, inside, other=1.0)
    tl.store(out + i, x + y, inside)
    tl.store(out + n + i, x - y, inside)
    tl.store(out + 2 * n + i, x * y, inside)
    tl.store(out + 3 * n + i, tl.div_rn(x, y), inside)
    tl.store(out + 4 * n + i, tl.sqrt_rn(x), inside)
    tl.store(out + 5 * n + i, x * y + x, inside)


@triton.jit
def through_a_table(table, sizes, D: tl.constexpr, BLOCK: tl.constexpr, scale):
    """Scales the tensors whose addresses are in a table."""
    which = tl.program_id(0)
    pointer = tl.load(table + which).to(tl.pointer_type(D))
    size = tl.load(sizes + which)
    for start in range(0, size, BLOCK):
        i = start + tl.arange(0, BLOCK)
        inside = i < size
        value = tl.load(pointer + i, inside, other=0.0).to(tl.float32)
        tl.store(pointer + i, (value * scale).to(D), inside)


@triton.jit
def planted_unmasked(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i), i < n)


@triton.jit
def planted_alignment(table, y, BLOCK: tl.constexpr):
    """Correct only if the tensor in the table is aligned to 16 bytes."""
    i = tl.arange(0, BLOCK)
    pointer = tl.multiple_of(tl.load(table).to(tl.pointer_type(tl.float32)), 16)
    tl.store(y + i, tl.load(pointer + i))


@triton.jit
def planted_undefined(x, y, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y, tl.sum(tl.load(x + i, i < n)))


@triton.jit
def loaded(x, i, n, OTHER: tl.constexpr):
    if OTHER is None:
        return tl.load(x + i, i < n)
    return tl.load(x + i, i < n, other=OTHER)


@triton.jit
def masked_load(x, y, n, BLOCK: tl.constexpr, OTHER: tl.constexpr, CALLED: tl.constexpr):
    """Stores all lanes of a masked load, which is here or in a function."""
    i = tl.arange(0, BLOCK)
    if CALLED:
        value = loaded(x, i, n, OTHER)
    elif OTHER is None:
        value = tl.load(x + i, i < n)
    else:
        value = tl.load(x + i, i < n, other=OTHER)
    tl.store(y + i, value)


@triton.jit
def planted_race(x, y, BLOCK: tl.constexpr):
    tl.store(y, tl.sum(tl.load(x + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))))


@triton.jit
def reversed_through_memory(x, y, BLOCK: tl.constexpr, BARRIER: tl.constexpr):
    """Each thread loads what another one stored."""
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i))
    if BARRIER:
        tl.debug_barrier()
    tl.store(x + i, tl.load(y + BLOCK - 1 - i))


@triton.jit
def masked_loads_used_well(x, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    value = tl.load(x + i, i < n)
    tl.store(out + i, value * 2, i < n)
    tl.store(out + n, tl.sum(tl.where(i < n, value, 0.0)))


@triton.jit
def produce_and_consume(
    flag, parts, out, BARRIER: tl.constexpr, RELEASE: tl.constexpr, ACQUIRE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Program 0 waits until all others have stored their parts, and adds them up."""
    me, all_ = tl.program_id(0), tl.num_programs(0)
    i = tl.arange(0, BLOCK)
    if me > 0:
        tl.store(parts + (me - 1) * BLOCK + i, i.to(tl.float32) + me)
        if BARRIER:
            tl.debug_barrier()
        tl.atomic_add(flag, 1, sem=RELEASE)
    else:
        while tl.atomic_add(flag, 0, sem=ACQUIRE) < all_ - 1:
            pass
        total = tl.zeros((BLOCK,), tl.float32)
        for other in range(all_ - 1):
            total += tl.load(parts + other * BLOCK + i)
        tl.store(out + i, total)


@triton.jit
def planted_wait(flag, y):
    while tl.atomic_add(flag, 0, sem="acquire") < tl.num_programs(0):
        pass
    tl.store(y + tl.program_id(0), 1.0)


@triton.jit
def with_options(x, out, n, one, SHIFT: tl.constexpr, KINDS: tl.constexpr, FUNCTION: tl.constexpr):
    """Arguments that Triton specializes: a tuple of types, a function and integers."""
    i = tl.arange(0, 32)
    value = FUNCTION(tl.load(x + i, i < n, other=0.0)).to(KINDS[1])
    tl.store(out + i, value.to(KINDS[0]) + one + SHIFT, i < n)


@triton.jit
def doubled(value):
    return value * 2


@triton.jit(do_not_specialize=["n"], do_not_specialize_on_alignment=["x"])
def unspecialized(x, n):
    tl.store(x + tl.arange(0, 128), tl.load(x + tl.arange(0, 128)) + n)
