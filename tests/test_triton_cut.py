"""How Triton's factored kernels cut tensors into work: nothing is left out, nothing done twice, and
no two tensors share scratch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from fusedstep.kernels import blocks, cut

BY_UNIT_ROWS = ("STATISTICS", "WIDE", "ROW_SUMS")


def boxes(layout, index, kind, sizes):
    """(matrices, rows, columns) of each unit, as slices, as the kernels read them from the cut."""
    own = layout.cuts[index]
    batch, rows, cols = sizes
    for unit in range(layout.work[index][kind]):
        if kind.name.startswith("TINY"):
            first = unit * cut.TINY_MATRICES
            yield slice(first, first + cut.TINY_MATRICES), slice(0, rows), slice(0, cols)
            continue
        by_units = kind.name in (*BY_UNIT_ROWS, "ROWS")
        height = own.unit_rows if by_units else own.update_rows
        parts = own.row_blocks if by_units else own.update_blocks
        chunks, width = own.chunks, own.chunk_cols
        if kind.name == "ROWS":
            chunks, width = 1, cols
        if kind.name == "COLUMNS":
            parts, height, chunks, width = 1, rows, own.tiles, cut.COLUMNS_WIDTH
        matrix, block = divmod(unit // chunks, parts)
        top, left = block * height, unit % chunks * width
        assert matrix < batch and top < rows and left < cols, "an empty unit"
        yield slice(matrix, matrix + 1), slice(top, top + height), slice(left, left + width)


shapes_of_matrices = st.one_of(
    st.tuples(st.integers(1, 4), st.integers(1, 5000), st.integers(1, 40)),
    st.tuples(st.integers(1, 3), st.integers(1, 700), st.integers(30, 300)),
    st.tuples(st.integers(1, 2), st.integers(1, 300), st.integers(1000, 1100)),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 20_000)),
    st.tuples(st.integers(1, 1), st.integers(255, 258), st.integers(4090, 8300)),
    st.tuples(st.integers(1, 3000), st.integers(1, 5), st.integers(1, 5)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(shapes_of_matrices, min_size=1, max_size=3), st.sampled_from([4, 8]))
def test_every_element_is_in_one_unit_of_each_kind(shapes, item_bytes):
    layout = cut.Layout(item_bytes)
    for sizes in shapes:
        layout.add_matrices(*sizes)
    for index, sizes in enumerate(shapes):
        for kind in layout.work[index].keys() - {cut.kind("FINISH"), cut.kind("REPORT")}:
            seen = np.zeros(sizes, np.int8)
            for box in boxes(layout, index, kind, sizes):
                seen[box] += 1
            assert seen.min() == seen.max() == 1, kind
            block = blocks.factored(kind, item_bytes, True)
            if kind.name in BY_UNIT_ROWS:  # a tile holds whole rows, or the chunks of a row
                assert block.width == layout.cuts[index].chunk_cols <= max(block.tile, 1)


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=5))
def test_every_element_of_a_vector_is_in_one_piece(lengths):
    layout = cut.Layout(4)
    for length in lengths:
        layout.add_vector(length)
    for length, own in zip(lengths, layout.work, strict=True):
        for name in ("VECTOR", "VECTOR_UPDATE"):
            assert (own[cut.kind(name)] - 1) * cut.PIECE < length <= own[cut.kind(name)] * cut.PIECE


def regions(own, batch):
    """Of the scratch of sums: (first, behind the last) of all that a tensor has there."""
    sizes = {
        "step_at": 2,
        "p_at": own.p_count,
        "u_at": own.u_count,
        "late_at": own.late_count,
        "rows_at": 2 * batch * own.row_blocks,
        "least_col_at": batch * own.tiles,
        "mean_at": batch if own.row_blocks else 0,
    }
    return [(getattr(own, at), getattr(own, at) + size) for at, size in sizes.items() if size]


@settings(deadline=None)
@given(st.lists(st.one_of(shapes_of_matrices, st.integers(1, 100_000)), min_size=1, max_size=8))
def test_what_tensors_have_in_the_scratch_does_not_overlap(shapes):
    layout = cut.Layout(4)
    for sizes in shapes:
        if isinstance(sizes, int):
            layout.add_vector(sizes)
        else:
            layout.add_matrices(*sizes)
    places, partials = [], []
    for sizes, own in zip(shapes, layout.cuts, strict=True):
        batch, rows, cols = (0, 0, 0) if isinstance(sizes, int) else sizes
        places += regions(own, batch)
        down = 2 * batch * own.row_blocks * cols if own.row_blocks > 1 else 0
        along = batch * rows * own.chunks if own.chunks > 1 else 0
        if down or along:
            partials.append((own.partials_at, own.partials_at + max(down, along)))
    for found, total in ((places, layout.sums), (partials, layout.partials)):
        ends = [0, *(end for _, end in sorted(found))]
        assert [first for first, _ in sorted(found)] == ends[:-1]
        assert ends[-1] == total
