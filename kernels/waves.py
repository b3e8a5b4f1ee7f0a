"""The kernel that does all phases of matrices in one launch, in the order of `fusedstep.gpu.waves`.

FUSEDSTEP_TRITON_WAVES=1 turns it on; it has not been measured yet. A kernel with all kinds of work
needs more registers, so fewer threads run to hide memory latency.
"""

import triton
import triton.language as tl

from fusedstep.gpu import cut as layout

from . import memory
from .dispatch import item

ENTRY = tl.constexpr(layout.WAVE_ENTRY)


@triton.jit
def wait(counter, need):
    """Waits until the counter is at least `need`. Writes before the counts are then visible."""
    if need > 0:
        while tl.atomic_add(counter, 0, sem="acquire") < need:
            pass


@triton.jit(do_not_specialize=["count"])
def waves(
    entries,
    count,
    counters,  # of tickets, then those that entries name
    table,
    cuts,
    scalar_row_of,
    scalars,
    controls,
    partials,
    sums,
    UPDATE: tl.constexpr,
    CFGS: tl.constexpr,  # one for each kind of work, by number
):
    args = (table, cuts, scalar_row_of, scalars, controls, partials, sums)
    if tl.load(controls + 1) == 0:
        done = counters + 1
        ticket = tl.atomic_add(counters, 1, sem="relaxed")
        while ticket < count:
            entry = entries + ENTRY * ticket
            kind = tl.load(entry)
            tensor = tl.load(entry + 1)
            unit = tl.load(entry + 2)
            also = tl.load(entry + 6)
            wait(done + tensor, tl.load(entry + 3))
            wait(done + tl.load(entry + 4), tl.load(entry + 5))
            at = tensor.to(tl.int64)
            present = memory.has_gradient(args, at, tl.constexpr(CFGS[0]))
            for k in tl.static_range(len(CFGS)):
                if present & (kind == k):
                    item(args, at, unit, UPDATE, tl.constexpr(CFGS[k]))
            tl.debug_barrier()  # all threads have stored
            tl.atomic_add(done + tensor, 1, sem="release")
            if also >= 0:
                tl.atomic_add(done + also, 1, sem="release")
            ticket = tl.atomic_add(counters, 1, sem="relaxed")
