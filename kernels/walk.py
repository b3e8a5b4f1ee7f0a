"""Kernels over work lists of a factored rule: an entry of a list is (tensor, unit of it).

`phase` walks one kind of work, a program to an entry; a step launches a phase after the other.
"""

import triton
import triton.language as tl

from . import matrix, matrix_elements, tensor, tiny, vector


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
    KIND: tl.constexpr,
    WIDTH: tl.constexpr,  # columns of a tile
    TILE: tl.constexpr,  # its elements
    UPDATE: tl.constexpr,
    DTYPES: tl.constexpr,  # of the slots: parameter, gradient, states
    T: tl.constexpr,  # computed in
    W: tl.constexpr,  # long sums are computed in
    VECTOR: tl.constexpr,
    ALIGNED: tl.constexpr,  # addresses are multiples of 16 bytes, rows of 16 elements
):
    lists = (table, cuts, row_of, scalars, controls, partials, sums)
    if tl.load(controls + 1) == 0:
        entry = entries + 2 * tl.program_id(0).to(tl.int64)
        at = tl.load(entry).to(tl.int64)
        unit = tl.load(entry + 1)
        item(lists, at, unit, KIND, WIDTH, TILE, UPDATE, DTYPES, T, W, VECTOR, ALIGNED)


@triton.jit
def item(
    lists,
    at,
    unit,
    KIND: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    UPDATE: tl.constexpr,
    DTYPES: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
    VECTOR: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """One unit of work on the tensor `at`."""
    if KIND == "ROW_SUMS":
        matrix.row_sums(lists, at, unit, DTYPES, T, ALIGNED, WIDTH, TILE)
    elif KIND == "ROWS":
        matrix.row_moments(lists, at, unit, DTYPES, T, W, WIDTH)
    elif KIND == "STATISTICS":
        matrix.statistics(lists, at, unit, DTYPES, T, W, ALIGNED, WIDTH, TILE, False)
    elif KIND == "WIDE":
        matrix.statistics(lists, at, unit, DTYPES, T, W, ALIGNED, WIDTH, TILE, True)
    elif KIND == "SQUARES":
        matrix_elements.squares(lists, at, unit, DTYPES, T, W, ALIGNED, WIDTH, TILE)
    elif KIND == "COLUMNS":
        matrix.columns(lists, at, unit, DTYPES, T, W, WIDTH, TILE)
    elif KIND == "ENERGY":
        matrix_elements.energy(lists, at, unit, DTYPES, T, W, ALIGNED, WIDTH, TILE)
    elif KIND == "UPDATE":
        matrix_elements.update(lists, at, unit, UPDATE, DTYPES, T, W, ALIGNED, WIDTH, TILE)
    elif KIND == "TINY":
        tiny.read(lists, at, unit, DTYPES, T, W, WIDTH)
    elif KIND == "TINY_UPDATE":
        tiny.update(lists, at, unit, UPDATE, DTYPES, T, W, WIDTH)
    elif KIND == "VECTOR":
        vector.read(lists, at, unit, DTYPES, T, W, ALIGNED, WIDTH, TILE)
    elif KIND == "VECTOR_UPDATE":
        vector.update(lists, at, unit, UPDATE, DTYPES, T, W, ALIGNED, WIDTH, TILE)
    elif KIND == "FINISH":
        tensor.finish(lists, at, DTYPES, T, W, VECTOR)
    else:
        tl.static_assert(KIND == "REPORT")
        tensor.report(lists, at, DTYPES, T, W, VECTOR)
