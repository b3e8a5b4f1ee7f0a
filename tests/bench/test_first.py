"""What a new kind of GPU should show first, without one: names of kernels, sizes of units."""

import collections

import fusedstep.backends.cuda as backend
from bench import first, kernels
from fusedstep.gpu import cut


def test_kernels_of_ours_are_named_by_their_work():
    cuda_name = (
        "void fusedstep::cuda::phase<(fusedstep::cuda::Unit)2, -2, 1, -2, 1, false>"
        "(fusedstep::cuda::KernelArgs)"
    )
    assert kernels.label(cuda_name) == "STATISTICS <-2, 1, -2, 1, false>"
    assert kernels.label("phase_COLUMN_SUMS_4096") == "COLUMN_SUMS 4096"
    assert kernels.label("elementwise") == "elementwise"


def test_sizes_of_units_are_tried_and_put_back(monkeypatch):
    """Of small lists, too: their units would have another height otherwise."""
    usual, tried = backend.UNIT_SIZES, []

    def kernels_of(rule, provider, dtype, chosen):
        layout = cut.Layout(backend.UNIT_SIZES, 4, elements=chosen.elements)
        layout.add_matrices(1, *chosen.shapes[0])
        tried.append((chosen.name, layout.cuts[0].unit_rows))
        return kernels.Spent(2.0, collections.Counter({"UPDATE <1>": 3.0, "UPDATE <2>": 1.0}))

    monkeypatch.setattr(first, "kernels_of", kernels_of)
    lines = first.unit_sizes()
    assert lines[0] == (
        "4096x4096, 256 rows: busy 2.0 us (STATISTICS 0.0, COLUMNS 0.0, UPDATE 4.0)"
    )
    assert [rows for name, rows in tried if name == "4096x4096"] == [*first.HEIGHTS, 32]
    assert backend.UNIT_SIZES is usual and len(lines) == len(tried)
