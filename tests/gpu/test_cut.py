"""How tensors are cut into work for factored kernels: nothing is left out or done twice, and no two
tensors share scratch. With the unit sizes of Triton and of CUDA."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fusedstep.backends.cuda
from fusedstep.gpu import cut, work
from fusedstep.gpu.unit_sizes import ceil_div
from fusedstep.kernels import blocks
from fusedstep.plan.bucket import Bucket
from fusedstep.plan.launcher import sums_layout
from fusedstep.rules import RULES

SIZES_OF = {"triton": blocks.UNIT_SIZES, "cuda": fusedstep.backends.cuda.UNIT_SIZES}
each_backend = pytest.mark.parametrize("unit_sizes", SIZES_OF.values(), ids=SIZES_OF)
BY_UNIT_ROWS = ("STATISTICS", "COLUMN_SUMS", "ROW_SUMS")
OF_ROWS = ("ROWS", "PACK_ROWS", "ROWS_EXCHANGED")
MODES = (None, "rows", "cols", "pieces")
OF_TENSORS = ("FINISH", "STORE_RMS", "PACK_SQUARES", "TOTAL_U2", "FINISH_EXCHANGED")


def boxes(layout, index, kind, sizes):
    """(matrices, rows, columns) of each unit as slices, read from the cut as the kernels do."""
    own = layout.cuts[index]
    batch, rows, cols = sizes
    for unit in range(layout.work[index][kind]):
        if kind.name.startswith("TINY"):
            first = unit * cut.TINY_MATRICES
            yield slice(first, first + cut.TINY_MATRICES), slice(0, rows), slice(0, cols)
            continue
        by_units = kind.name in (*BY_UNIT_ROWS, *OF_ROWS)
        height = own.unit_rows if by_units else own.update_rows
        parts = own.row_blocks if by_units else own.update_blocks
        chunks, width = own.chunks, own.chunk_cols
        if kind.name in OF_ROWS:
            chunks, width = 1, cols
        if "COLUMNS" in kind.name:
            parts, height, chunks, width = 1, rows, own.tiles, own.tile_cols
        matrix, block = divmod(unit // chunks, parts)
        top, left = block * height, unit % chunks * width
        assert matrix < batch and left < cols, "an empty unit"
        assert top < rows or (not layout.has_whole_columns and rows == 1), "an empty unit"
        yield slice(matrix, matrix + 1), slice(top, top + height), slice(left, left + width)


shapes_of_matrices = st.one_of(
    st.tuples(st.integers(1, 4), st.integers(1, 5000), st.integers(1, 40)),
    st.tuples(st.integers(1, 3), st.integers(1, 700), st.integers(30, 300)),
    st.tuples(st.integers(1, 2), st.integers(1, 300), st.integers(1000, 1100)),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 20_000)),
    st.tuples(st.integers(1, 1), st.integers(255, 258), st.integers(4090, 8300)),
    st.tuples(st.integers(1, 3000), st.integers(1, 5), st.integers(1, 5)),
)


@each_backend
@settings(max_examples=60, deadline=None)
@given(
    st.lists(shapes_of_matrices, min_size=1, max_size=3),
    st.sampled_from([4, 8]),
    st.sampled_from(MODES),
)
def test_every_element_is_in_one_unit_of_each_kind(unit_sizes, shapes, item_bytes, mode):
    layout = cut.Layout(unit_sizes, item_bytes, mode)
    for sizes in shapes:
        layout.add_matrices(*sizes)
    for index, sizes in enumerate(shapes):
        for kind in layout.work[index].keys() - set(map(cut.kind, OF_TENSORS)):
            seen = np.zeros(sizes, np.int8)
            for box in boxes(layout, index, kind, sizes):
                seen[box] += 1
            assert seen.min() == seen.max() == 1, kind
            if kind.name in BY_UNIT_ROWS:  # a tile holds whole rows, or the chunks of a row
                assert kind.width == layout.cuts[index].chunk_cols
                block = blocks.factored(kind, item_bytes, True)
                assert (
                    unit_sizes is not blocks.UNIT_SIZES or block.width == kind.width <= block.tile
                )


@each_backend
@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=5))
def test_every_element_of_a_vector_is_in_one_piece(unit_sizes, lengths):
    layout = cut.Layout(unit_sizes, 4)
    for length in lengths:
        layout.add_vector(length)
    for length, own in zip(lengths, layout.work, strict=True):
        for name in ("VECTOR", "VECTOR_UPDATE"):
            assert (
                (own[cut.kind(name)] - 1) * cut.VECTOR_UNIT
                < length
                <= own[cut.kind(name)] * cut.VECTOR_UNIT
            )


def regions(own, batch):
    """All ranges (start, end) that a tensor has in the scratch of sums."""
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


@each_backend
@settings(deadline=None)
@given(
    st.lists(st.one_of(shapes_of_matrices, st.integers(1, 100_000)), min_size=1, max_size=8),
    st.sampled_from(MODES),
)
def test_what_tensors_have_in_the_scratch_does_not_overlap(unit_sizes, shapes, mode):
    layout = cut.Layout(unit_sizes, 4, mode)
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
        along = batch * rows * own.chunks if own.chunks > 1 or mode == "cols" else 0
        if own.row_blocks:
            assert max(down, along) <= own.col_factors_at < max(down, along) + 8
            assert own.partials_at % 8 == own.col_factors_at % 8 == 0
            factors = 8 * ceil_div(batch * cols, 8)
            partials.append((own.partials_at, own.partials_at + own.col_factors_at + factors))
    for found, total in ((places, layout.sums), (partials, layout.partials)):
        ends = [0, *(end for _, end in sorted(found))]
        assert [first for first, _ in sorted(found)] == ends[:-1]
        assert ends[-1] == total


@pytest.mark.parametrize("mode", MODES[1:])
def test_an_exchanged_bucket_has_its_sums_where_the_host_looks_for_them(mode):
    matrices = [(3, 5), (4, 2, 7), (1, 9), (512, 3, 3), (0, 5), (5, 0), (0, 2, 3)]
    for shapes in (matrices, [(7,), (20_000,), (0,)]):
        kind = "matrix" if len(shapes[0]) > 1 else "vector"
        bucket = Bucket(RULES["adafactor"], kind, torch.device("cpu"), (), mode)
        layout = cut.Layout(fusedstep.backends.cuda.UNIT_SIZES, 4, mode)
        sizes = []
        for shape in shapes:
            *batch, rows, cols = (1, *shape)
            own = (torch.Size(batch).numel(), rows, cols) if kind == "matrix" else shape
            (layout.add_matrices if kind == "matrix" else layout.add_vector)(*own)
            sizes.append([0, *own])
        bucket.table = torch.tensor(sizes)
        starts = [own.exchange_at for own in layout.cuts]
        assert [*starts, layout.exchange] == sums_layout(bucket)


@each_backend
@pytest.mark.parametrize("mode", ["rows", "cols"])
@given(shapes_of_matrices)
def test_no_unit_has_all_rows_if_they_are_split(unit_sizes, mode, sizes):
    layout = cut.Layout(unit_sizes, 4, mode)
    layout.add_matrices(*sizes)
    (own,), (work_of,) = layout.cuts, layout.work
    assert own.row_blocks > 1 and own.unit_rows * own.row_blocks >= sizes[1]
    assert {kind.name for kind in work_of} >= {"PACK_COLUMNS", "COLUMNS_EXCHANGED"}


@each_backend
@pytest.mark.parametrize("mode", MODES[1:])
def test_work_of_a_stage_comes_before_that_of_the_next(unit_sizes, mode):
    layout = cut.Layout(unit_sizes, 4, mode)
    layout.add_matrices(2, 300, 9000)
    layout.add_matrices(100, 3, 3)
    kinds = sorted({kind for work_of in layout.work for kind in work_of})
    phases_of = {}
    for kind in kinds:
        phases_of.setdefault(cut.stage_of(kind.name, mode), []).append(kind.phase)
    order = ["sum_rows"] * (mode == "cols") + list(cut.STAGES)
    assert sorted(phases_of, key=order.index) == order
    for before, after in itertools.pairwise(order):  # within a stage, phases give the order
        assert before == "sum_rows" or max(phases_of[before]) < min(phases_of[after])
    if mode == "cols":
        assert set(phases_of["sum_rows"]) == {cut.kind(name).phase for name in cut.SUM_ROWS}


@each_backend
@pytest.mark.parametrize(
    ("mode", "sizes", "kinds"),
    [
        ("rows", (1, 0, 5), {"PACK_COLUMNS", "COLUMNS_EXCHANGED"}),
        ("cols", (1, 0, 5), {"PACK_COLUMNS", "COLUMNS_EXCHANGED"}),
        ("cols", (3, 5, 0), {"PACK_ROWS", "ROWS_EXCHANGED"}),
        *((mode, (0, 3, 5), set()) for mode in MODES[1:]),
        ("cols", (0, 0, 0), set()),
    ],
)
def test_what_is_empty_has_no_unit_that_reads_it(unit_sizes, mode, sizes, kinds):
    layout = cut.Layout(unit_sizes, 4, mode, elements=1)
    layout.add_matrices(*sizes)
    (own,), (work_of,) = layout.cuts, layout.work
    names = {kind.name for kind in work_of}
    assert names == kinds | {"PACK_SQUARES", "TOTAL_U2", "FINISH_EXCHANGED"}
    assert min(work_of.values()) > 0
    assert own.p_count == own.exact_count == 0


# What the CUDA kernels expect of a cut.


@settings(deadline=None)
@given(shapes_of_matrices, st.sampled_from([4, 8]))
def test_a_unit_of_a_block_has_rows_enough_and_not_too_many(sizes, item_bytes):
    cols = sizes[2]
    layout = cut.Layout(fusedstep.backends.cuda.UNIT_SIZES, item_bytes)
    layout.add_matrices(*sizes)
    (own,), (work_of,) = layout.cuts, layout.work
    if cut.kind("TINY") in work_of:
        return
    width = min(cols, own.chunk_cols)
    assert own.unit_rows % 16 == 0 and own.unit_rows * width >= 65536
    assert own.unit_rows <= 256 if width >= 2048 else own.unit_rows * width <= 256 * 8192
    assert own.update_rows >= 8 and own.update_rows * width <= 131_072
    # Threads hold all columns of a unit, and float64 numbers are twice as large.
    assert own.chunk_cols in ((2048,) if item_bytes == 8 else (4096, 8192))
    assert own.tiles == (own.chunks if own.row_blocks == 1 else ceil_div(cols, own.tile_cols))
    assert own.row_blocks == 1 or own.tile_cols in (64, 128, 256)


@pytest.mark.parametrize(
    ("rows", "cols", "unit_rows", "chunk_cols", "long_rows"),
    [
        (100, 4096, 256, 4096, False),
        (2000, 5632, 256, 8192, True),
        (100_000, 8193, 256, 4096, False),
        (100_000, 8193, 256, 12288, True),
        (4096, 14_336, 256, 16384, True),
        (4096, 16_385, 256, 4096, True),
        (64, 1, 524_288, 4096, False),
        (128_256, 1024, 512, 4096, False),
    ],
)
def test_units_have_as_many_elements_of_short_rows(rows, cols, unit_rows, chunk_cols, long_rows):
    layout = cut.Layout(fusedstep.backends.cuda.UNIT_SIZES, 4)
    layout.add_matrices(1, rows, cols, long_rows)
    assert (layout.cuts[0].unit_rows, layout.cuts[0].chunk_cols) == (unit_rows, chunk_cols)


@each_backend
@settings(deadline=None)
@given(shapes_of_matrices, st.integers(1, 10**9), st.sampled_from([4, 8]))
def test_a_small_bucket_has_low_units_and_a_large_one_high_units(
    unit_sizes, sizes, others, item_bytes
):
    elements = sizes[0] * sizes[1] * sizes[2]

    def cut_beside(others):
        layout = cut.Layout(unit_sizes, item_bytes, elements=elements + others)
        layout.add_matrices(*sizes)
        return layout.cuts[0]

    some, most = cut_beside(others), cut_beside(10**12)
    assert most == cut_beside(10**13)
    assert 0 <= some.unit_rows <= most.unit_rows
    assert some.update_rows <= most.update_rows
    assert some.row_blocks <= most.row_blocks * 256


@each_backend
@pytest.mark.parametrize("shape", [(4096, 4096), (11008, 4096), (4096, 11008), (50257, 768)])
def test_a_single_matrix_gives_work_to_most_multiprocessors(unit_sizes, shape):
    layout = cut.Layout(unit_sizes, 4, elements=shape[0] * shape[1])
    layout.add_matrices(1, *shape)
    (own,) = layout.cuts
    programs = unit_sizes.programs[own.chunk_cols]
    rounds = own.row_blocks * own.chunks / programs
    assert 0.85 <= rounds / round(rounds) <= 132 / 128  # an H100 has 132 multiprocessors
    assert own.update_blocks * own.chunks >= unit_sizes.update_programs


def test_more_work_than_a_launch_can_have_is_refused():
    with pytest.raises(ValueError, match="2147483648 units of work are more than a launch"):
        work.entries([(0, 1), (1, 2**31 - 1)])
    assert work.entries([(3, 2), (5, 1)]).tolist() == [[3, 0], [3, 1], [5, 0]]


def test_units_have_numbers_for_cpp():
    assert set(cut.UNITS) == {*cut.PHASES, "ELEMENTWISE", *cut.EXCHANGED_PHASES}
    assert len(cut.UNITS) <= 32
