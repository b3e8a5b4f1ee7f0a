"""Kernels over work lists of a factored rule: an entry of a list is (tensor, unit of it).

`phase` walks one kind of work, a program to an entry; a step launches a phase after the other.
"""

import triton
import triton.language as tl

from . import matrix, matrix_elements, memory, tensor, tiny, vector


@triton.jit
def phase(
    entries,
    table,
    cuts,
    row_of,  # of each tensor, its row of scalars
    scalars,
    controls,  # inverse gradient scale, found_inf
    partials,
    sums,
    UPDATE: tl.constexpr,
    CFG: tl.constexpr,
):
    lists = (table, cuts, row_of, scalars, controls, partials, sums)
    if tl.load(controls + 1) == 0:
        entry = entries + 2 * tl.program_id(0).to(tl.int64)
        at = tl.load(entry).to(tl.int64)
        unit = tl.load(entry + 1)
        if memory.has_gradient(lists, at, CFG):
            item(lists, at, unit, UPDATE, CFG)


@triton.jit
def item(lists, at, unit, UPDATE: tl.constexpr, CFG: tl.constexpr):
    """One unit of work on the tensor `at`."""
    if CFG.KIND == "ROW_SUMS":
        matrix.row_sums(lists, at, unit, CFG)
    elif CFG.KIND == "ROWS":
        matrix.row_moments(lists, at, unit, CFG)
    elif CFG.KIND == "STATISTICS" or CFG.KIND == "WIDE":
        matrix.statistics(lists, at, unit, CFG)
    elif CFG.KIND == "SQUARES":
        matrix_elements.squares(lists, at, unit, CFG)
    elif CFG.KIND == "COLUMNS":
        matrix.columns(lists, at, unit, CFG)
    elif CFG.KIND == "ENERGY":
        matrix_elements.energy(lists, at, unit, CFG)
    elif CFG.KIND == "UPDATE":
        matrix_elements.update(lists, at, unit, UPDATE, CFG)
    elif CFG.KIND == "TINY":
        tiny.read(lists, at, unit, CFG)
    elif CFG.KIND == "TINY_UPDATE":
        tiny.update(lists, at, unit, UPDATE, CFG)
    elif CFG.KIND == "VECTOR":
        vector.read(lists, at, unit, CFG)
    elif CFG.KIND == "VECTOR_UPDATE":
        vector.update(lists, at, unit, UPDATE, CFG)
    elif CFG.KIND == "FINISH":
        tensor.finish(lists, at, CFG)
    else:
        tl.static_assert(CFG.KIND == "REPORT")
        tensor.report(lists, at, CFG)
