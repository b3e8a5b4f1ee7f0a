"""The kernel that runs one kind of work of a factored rule over a list of (tensor, unit).

Each program runs one entry. A step launches the phases one after another.
"""

import triton
import triton.language as tl

from . import matrix, matrix_elements, memory, tensor, tiny, vector
from .config import name_with_kind


@triton.jit(repr=name_with_kind)
def phase(
    entries,
    table,
    cuts,
    scalar_row_of,  # each tensor's row of scalars
    scalars,
    controls,  # inverse gradient scale, found_inf
    partials,
    sums,
    noise_rows,  # one for each tensor, or None
    UPDATE: tl.constexpr,
    CFG: tl.constexpr,
):
    args = (table, cuts, scalar_row_of, scalars, controls, partials, sums, noise_rows)
    if tl.load(controls + 1) == 0:
        entry = entries + 2 * tl.program_id(0).to(tl.int64)
        at = tl.load(entry).to(tl.int64)
        unit = tl.load(entry + 1)
        if memory.has_gradient(args, at, CFG):
            item(args, at, unit, UPDATE, CFG)


@triton.jit
def item(args, at, unit, UPDATE: tl.constexpr, CFG: tl.constexpr):
    """Does one unit of work on tensor number `at`."""
    if CFG.KIND == "ROW_SUMS":
        matrix.row_sums(args, at, unit, CFG)
    elif CFG.KIND == "ROWS":
        matrix.row_moments(args, at, unit, None, None, CFG)
    elif CFG.KIND == "STATISTICS" or CFG.KIND == "COLUMN_SUMS":
        matrix.statistics(args, at, unit, CFG)
    elif CFG.KIND == "SQUARES":
        matrix_elements.squares(args, at, unit, CFG)
    elif CFG.KIND == "COLUMNS":
        matrix.columns(args, at, unit, CFG)
    elif CFG.KIND == "SUM_U2":
        matrix_elements.sum_u2(args, at, unit, CFG)
    elif CFG.KIND == "UPDATE":
        matrix_elements.update(args, at, unit, UPDATE, CFG)
    elif CFG.KIND == "TINY":
        tiny.read(args, at, unit, CFG)
    elif CFG.KIND == "TINY_UPDATE":
        tiny.update(args, at, unit, UPDATE, CFG)
    elif CFG.KIND == "VECTOR":
        vector.read(args, at, unit, CFG)
    elif CFG.KIND == "VECTOR_UPDATE":
        vector.update(args, at, unit, UPDATE, CFG)
    elif CFG.KIND == "FINISH":
        tensor.finish(args, at, CFG)
    else:
        tl.static_assert(CFG.KIND == "STORE_RMS")
        tensor.store_rms(args, at, CFG)
