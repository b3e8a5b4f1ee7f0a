"""The host side of the CUDA backend: what it launches and keeps. Launches are recorded, not run.
gpu/test_host.py tests what both GPU backends share."""

import ctypes
from contextlib import contextmanager

import pytest
import torch

import fusedstep.backends.cuda
import fusedstep.optim
from fusedstep.gpu import cut, tables
from tests.support import recorded_cuda
from tests.support.cases import CASES, each, make_params, set_grads
from tests.support.recorded_cuda import SHAPES, SMALL_UNITS, numbers_at, started

CASE = {case.name: case for case in CASES}
ADAFACTOR, SCALED = CASE["adafactor"], CASE["hf-adafactor-scaled"]


@pytest.fixture
def module(monkeypatch):
    return recorded_cuda.register(monkeypatch)


# Launches.


@pytest.fixture
def small_units(monkeypatch):
    monkeypatch.setattr(fusedstep.backends.cuda, "UNIT_SIZES", SMALL_UNITS)


def test_a_bucket_is_described_by_numbers_that_cpp_knows(module):
    started(CASE["hf-adafactor-momentum"], [(3,), (4, 5)])
    names = list(fusedstep.backends.cuda.RULE_IDS)
    described = {
        w.kind: (names[w.rule], w.wide, w.dtypes, w.fields, w.row_length) for w in module.made
    }
    scalars = 2 + len(fusedstep.rules.RULES["adafactor_momentum"].scalars)
    assert described == {
        1: ("adafactor_momentum", False, [0, 0, 0, 0, 0], 5 + 4, scalars),
        2: ("adafactor_momentum", False, [0, 0, 0, 0], 4 + 2, scalars),
    }
    module.made.clear()
    params = [torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))]
    params[0].grad = torch.zeros_like(params[0])
    fusedstep.optim.AdamW(params, backend="recorded").step()
    (work,) = module.made
    assert (names[work.rule], work.wide, work.kind, work.dtypes) == ("adamw", True, 0, 4 * [3])


@each([CASE["adamw"], CASE["adamw-amsgrad"]])
def test_one_launch_takes_aligned_tensors_and_others(case, module):
    room = torch.zeros(30_000)
    params = [torch.nn.Parameter(room[:20_000]), torch.nn.Parameter(room[20_001:20_008])]
    set_grads(params, 0)
    optimizer = case.make(params, backend="recorded")
    optimizer.step()
    ((_, (table, *_), stream, idle),) = module.launched
    assert (stream, idle) == (0, 0)
    (work,) = module.made
    assert work.phases == [("ELEMENTWISE", 0, False, [0, 0, 0, 1, 0, 2, 1, 0])]
    rows = numbers_at(table, 2 * work.fields, ctypes.c_int64)
    assert (rows[0], rows[work.fields]) == (params[0].data_ptr(), params[1].data_ptr())
    assert rows[work.fields - 1 :: work.fields] == [20_000, 7]


def test_matrices_that_are_not_aligned_have_launches_of_their_own(module):
    """Addresses and rows of parameter and gradient must be multiples of 16 bytes. Units that load
    no tiles do not need that."""
    room = torch.zeros(5, 400)
    params = [
        torch.nn.Parameter(room[k, start : start + 20 * cols].view(20, cols))
        for k, (start, cols) in enumerate(((0, 16), (4, 16), (1, 16), (0, 14)))
    ]
    set_grads(params, 0)
    params[1].grad = room[4, 1:321].view(20, 16)
    fusedstep.optim.Adafactor(params, backend="recorded").step()
    (work,) = module.made
    found = {(kind, aligned): set(own[::2]) for kind, _, aligned, own in work.phases}
    for kind in ("STATISTICS", "UPDATE", "SQUARES", "SUM_U2"):
        assert (found[kind, True], found[kind, False]) == ({0}, {1, 2, 3})
    assert found["FINISH", False] == {0, 1, 2, 3} and ("FINISH", True) not in found


@pytest.mark.usefixtures("small_units")
def test_cuts_lie_where_the_kernels_look_for_them(module):
    optimizer, _ = started(ADAFACTOR, [(70, 1024), (2, 8200)])
    (work,), (launcher,) = module.made, optimizer._plan.launchers
    elements = 70 * 1024 + 2 * 8200
    layout = cut.Layout(fusedstep.backends.cuda.UNIT_SIZES, 4, elements=elements)
    layout.add_matrices(1, 70, 1024)
    layout.add_matrices(1, 2, 8200)
    found = numbers_at(work.scratch[0], 2 * len(cut.FIELDS), ctypes.c_int64)
    assert found == [number for row in layout.rows() for number in row]
    kept = {tensor.data_ptr(): tensor for tensor in launcher.kept}
    partials, sums = (kept[address] for address in work.scratch[1:])
    assert (partials.dtype, len(partials)) == (torch.float32, layout.partials)
    assert (sums.dtype, len(sums)) == (torch.float64, layout.sums)
    phases = {(kind, width): entries for kind, width, _, entries in work.phases}
    for index, units in enumerate(layout.work):
        for kind, count in units.items():
            own = phases[kind.name, kind.width]
            pairs = list(zip(own[::2], own[1::2], strict=True))
            found = [unit for tensor, unit in pairs if tensor == index]
            # Units that were read last are updated first.
            assert found == list(range(count))[:: -1 if kind.name == "UPDATE" else 1]


def test_scalars_and_controls_are_float64(module):
    params = make_params([(4, 5), (3, 3)])
    set_grads(params, 0)
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.5, "maximize": True}]
    optimizer = fusedstep.optim.AdamW(groups, backend="recorded")
    found = []

    def read(work, table, scalar_row_of, scalars, controls, *_):
        found.append(numbers_at(scalar_row_of, 2, ctypes.c_int64))
        found.append(numbers_at(scalars, 2 * work.row_length, ctypes.c_double))
        found.append(numbers_at(controls, 2, ctypes.c_double))

    optimizer.step()
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorded_cuda.Bucket, "launch", read)
        optimizer.step()
    rows, scalars, controls = found
    assert rows == [0, 1] and controls == [0.25, 0.0]
    assert (scalars[0], scalars[len(scalars) // 2]) == (1.0, -1.0)


def test_scalars_go_by_value_if_a_launch_has_room(module):
    seen = []

    def see(work, table, scalar_row_of, scalars, controls, stream, idle, values):
        seen.append((values, numbers_at(scalars, work.row_length, ctypes.c_double)[0]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorded_cuda.Bucket, "launch", see)
        for n_groups in (1, 2, module.VALUES):
            started(CASE["adamw"], n_groups * [(3,)], n_groups * ({},))
    length = module.made[-1].row_length
    assert seen == [(length, 1.0), (2 * length, 1.0), (0, 1.0)]


def test_work_is_launched_on_the_current_stream_of_the_tensors_device(module, monkeypatch):
    here, guarded, recorded = [77], [], []

    @contextmanager
    def on_device(device):
        guarded.append(device)
        before = len(module.launched)
        yield
        assert len(module.launched) <= before + 1
        guarded.append("left")

    monkeypatch.setattr(tables, "on_device", on_device)
    monkeypatch.setattr(tables, "current_stream", lambda device: here[0])
    monkeypatch.setattr(tables, "stream_object", lambda device: ("stream", here[0]))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, s: recorded.append(s))
    optimizer, params = started(CASE["adamw"], [(4, 5)])
    assert guarded == 2 * [params[0].device, "left"]  # to prepare, and to launch
    optimizer.step()
    assert [stream for _, _, stream, _ in module.launched] == [77, 77] and not recorded
    here[0] = 5
    optimizer.step()
    assert module.launched[-1][2] == 5
    kept = optimizer._plan.launchers[0]
    assert recorded == (len(kept.kept) + len(kept.tables.held())) * [("stream", 5)]


# Memory.


def test_the_memory_of_a_launch_lives_as_long_as_the_plan(module):
    optimizer, _ = started(ADAFACTOR, SHAPES)
    for launcher in optimizer._plan.launchers:
        kept = {tensor.data_ptr() for tensor in launcher.kept}
        assert set(launcher.native.scratch) <= kept


# Errors.


def test_an_error_says_what_was_launched(module):
    module.fails = "STATISTICS could not be launched on 7 blocks: cudaErrorInvalidValue: no"
    said = (
        r"recorded backend, a bucket on cpu \(adafactor, matrix, tensors: 2, "
        r"float32/float32/float32/float32, the first one of shape \(4, 5\) in group 0\): "
        r"STATISTICS could not be launched on 7 blocks: cudaErrorInvalidValue: no"
    )
    with pytest.raises(RuntimeError, match=said):
        started(ADAFACTOR, [(4, 5), (6, 7)])


def test_too_much_work_for_a_launch_is_an_error_that_names_the_bucket(module, monkeypatch):
    monkeypatch.setattr("fusedstep.gpu.work.MOST_ENTRIES", 3)
    with pytest.raises(RuntimeError, match=r"in group 0\): 4 units of work are more than a launch"):
        started(CASE["adamw"], [(4, 8192)])
