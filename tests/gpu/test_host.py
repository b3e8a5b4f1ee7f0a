"""The host side of both GPU backends: what a step launches, copies, keeps and waits for. Launches
are recorded, not run, so these tests need no GPU."""

from contextlib import nullcontext

import pytest
import torch

import fusedstep.backends.cuda
import fusedstep.optim
from fusedstep import backends, check
from fusedstep.gpu import cut, tables
from fusedstep.plan import plan
from fusedstep.plan.watch import PythonWatch
from tests.support import recorded_cuda
from tests.support.calls import Calls
from tests.support.cases import CASES, each, make_params, set_grads
from tests.support.parameter_lists import LISTS, OPTIMIZERS, a_list, each_optimizer
from tests.support.rule_cases import FACTORED, is_factored, once_a_kind
from tests.support.sweeps import sweep

CASE = {case.name: case for case in CASES}
ADAFACTOR, SCALED = CASE["adafactor"], CASE["hf-adafactor-scaled"]


class RecordedCuda:
    """The recorded CUDA backend, and the number of launches for its shapes.

    Every rule needs `every`: one for each kind of work on matrices and vectors; STATISTICS for two
    widths of tiles, and for matrices that are not aligned; UPDATE for these too; FINISH for vectors
    and matrices. Some rules need more: SQUARES and SUM_U2 by alignment, STORE_RMS for vectors and
    matrices."""

    name = "recorded"
    shapes = recorded_cuda.SHAPES
    every, squares, sum_u2, store_rms = 15, 2, 2, 2

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch
        self.module = recorded_cuda.register(monkeypatch)

    def cut_small_units(self):
        unit_sizes = recorded_cuda.SMALL_UNITS
        self.monkeypatch.setattr(fusedstep.backends.cuda, "UNIT_SIZES", unit_sizes)

    def take(self, device_type):
        backend = backends.BACKENDS[self.name]
        self.monkeypatch.setattr(backend, "_device_types", (device_type,))

    def clear(self):
        self.module.launched.clear()

    def kinds(self):
        return [kind for kind, *_ in self.module.kinds()]

    def check_none_is_launched_twice(self):
        found = self.module.kinds()
        of_vectors_too = {"FINISH", "STORE_RMS"}
        assert all(found.count(own) == 1 + (own[0] in of_vectors_too) for own in found)

    def sequences(self):
        return [[kind for kind, *_ in work.phases] for work in self.module.made]

    def check_nothing_was_read(self, optimizer, capturable):
        assert len(self.module.launched) == len(optimizer._plan.buckets)
        if capturable:  # the host has not read the scalars, so it left nothing out
            assert all(idle == 0 for *_, idle in self.module.launched)


class RecordedTriton:
    """The recorded Triton backend, and the number of launches for its shapes.

    Every rule needs `every`: two kinds of work for vectors, two for tiny matrices, three for long
    rows, one for blocks of rows; three by the width of tiles and the alignment of matrices; FINISH
    for vectors and matrices. Some rules need more: sums of p^2, sums of u^2 if there is a cap,
    rms(p) if it is shown but not needed."""

    name = "triton"
    # A vector, a matrix, one of several blocks of rows, long rows, tiny matrices, an aligned one.
    shapes = ((3,), (4, 5), (300, 33), (2, 2064), (40, 3, 3), (64, 64))
    every, squares, sum_u2, store_rms = 8 + 3 + 4 + 2, 4, 4, 2

    def __init__(self, monkeypatch):
        pytest.importorskip("triton", minversion="3.4")
        from tests.support import recorded_triton

        self.monkeypatch, self.module = monkeypatch, recorded_triton
        self.launched = recorded_triton.register(monkeypatch)

    def cut_small_units(self):
        """Nothing to do: Triton's units are small."""

    def take(self, device_type):
        self.module.take(self.monkeypatch, device_type)

    def clear(self):
        self.launched.clear()

    def kinds(self):
        return [kind for kind, _ in self.launched]

    def check_none_is_launched_twice(self):
        """Nothing to do: a kind may have several widths, so tests compare numbers of launches."""

    def sequences(self):
        vectors = [self.module.constant(arguments, "VECTOR") for _, arguments in self.launched]
        pairs = list(zip(self.kinds(), vectors, strict=True))
        return [[kind for kind, is_vector in pairs if is_vector == own] for own in (False, True)]

    def check_nothing_was_read(self, optimizer, capturable):
        assert self.launched
        for _, arguments in self.launched:
            assert {t.device.type for t in arguments.values() if torch.is_tensor(t)} == {"meta"}


RECORDED = {"cuda": RecordedCuda, "triton": RecordedTriton}


@pytest.fixture(params=RECORDED)
def backend(request, monkeypatch):
    return RECORDED[request.param](monkeypatch)


def started(case, shapes, backend, groups=({},)):
    return recorded_cuda.started(case, shapes, groups, backend.name)


# Launches.


def optional(case):
    """Kinds of work that only some rules and options need."""
    if case.ours is fusedstep.optim.Adafactor:
        return {"SQUARES", "SUM_U2"}
    return {"SQUARES"} if case.options.get("scale_parameter", True) else {"STORE_RMS"}


@pytest.mark.parametrize("copies", sweep([1, 10, 150], [1, 10]))
@once_a_kind
def test_launches_do_not_grow_with_the_number_of_parameters(case, copies, backend):
    backend.cut_small_units()
    expected = 1
    if is_factored(case):
        expected = backend.every + sum(getattr(backend, kind.lower()) for kind in optional(case))
    optimizer, _ = started(case, copies * list(backend.shapes), backend)
    for _ in range(2):
        backend.clear()
        optimizer.step()
        assert len(backend.kinds()) == expected
        backend.check_none_is_launched_twice()


@each(FACTORED)
def test_work_that_would_find_nothing_is_not_launched(case, backend):
    backend.cut_small_units()
    started(case, backend.shapes, backend)
    always = set(cut.PHASES).difference(*map(optional, FACTORED))
    assert set(backend.kinds()) == always | optional(case)


def test_one_group_that_needs_it_is_enough(backend):
    started(SCALED, 2 * [(4, 5)], backend, ({}, {"scale_parameter": False}))
    assert {"SQUARES", "STORE_RMS"} <= set(backend.kinds())
    for groups, capped in ((({"eps": (0.0, 1e-3)}, {}), True), (({"eps": (0.0, 1e-3)},), False)):
        backend.clear()
        started(ADAFACTOR, 2 * [(4, 5)], backend, groups)
        assert ("SUM_U2" in backend.kinds()) == capped


def test_phases_are_launched_in_order(backend):
    started(ADAFACTOR, backend.shapes, backend)
    for kinds in backend.sequences():
        phases = [cut.PHASES[kind] for kind in kinds]
        assert phases and phases == sorted(phases)


# Copies and waits.


@pytest.fixture
def uploaded(monkeypatch):
    """The copies to the device."""
    real, found = tables.upload, []

    def upload(tensor, device):
        found.append(tensor)
        return real(tensor, device)

    monkeypatch.setattr(tables, "upload", upload)
    return found


@each([CASE["adamw"], ADAFACTOR, CASE["hf-adafactor"]])
def test_only_what_changed_is_copied_again(case, uploaded, backend):
    optimizer, params = started(case, [(4, 5), (3, 3)], backend)
    (bucket,) = optimizer._plan.buckets

    def copied():
        uploaded.clear()
        optimizer.step()
        assert optimizer._plan.buckets == [bucket]
        own = {id(bucket.table): "table", id(bucket.rows.scalar_row_of): "scalar_row_of"}
        return sorted(own.get(id(tensor), "scalars") for tensor in uploaded)

    # A row for each group, which changes at every step. CUDA's launches take it by value.
    always = ["scalars"] if backend.name == "triton" else []
    for _ in range(3):
        assert copied() == always
    params[1].grad = params[1].grad.clone()
    assert copied() == [*always, "table"]
    assert copied() == always
    optimizer.state[params[0]]["step"] += 5
    assert copied() == ["scalar_row_of", *always]
    assert copied() == always


@once_a_kind
def test_calls_of_torch_do_not_grow_with_the_number_of_parameters(case, backend):
    def calls_of_a_step(shapes):
        params = make_params(shapes)
        groups = [{"params": params[::2]}, {"params": params[1::2]}]
        optimizer = case.make(groups, backend=backend.name)
        for step in range(3):
            set_grads(params, step)
            with Calls() as calls:
                optimizer.step()
        return calls.count

    few, many = (calls_of_a_step(n * [(3,), (4, 5)]) for n in (5, 100))
    assert few == many
    assert sum(many.values()) < 50, many


def no_waiting(*_, **__):
    raise AssertionError("waits for a device")


@pytest.fixture
def meta(monkeypatch):
    """Meta tensors stand for those of a GPU: reading their numbers raises."""
    monkeypatch.setattr(check, "check_tensors", lambda *_: None)
    monkeypatch.setattr(plan, "watch", PythonWatch)
    monkeypatch.setattr(tables, "on_device", lambda device: nullcontext())
    monkeypatch.setattr(tables, "current_stream", lambda device: None)
    monkeypatch.setattr(tables, "upload", lambda tensor, device: tensor.to(device))
    for waiting in ("synchronize", "Stream.synchronize", "Event.synchronize", "Event.query"):
        monkeypatch.setattr(f"torch.cuda.{waiting}", no_waiting)


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize("scaled", [False, True], ids=["", "scaled"])
@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
@once_a_kind
def test_nothing_is_read_from_a_device(case, capturable, scaled, backend):
    backend.take("meta")
    capturable = capturable and case.takes("capturable")  # else its counters are Python numbers
    params = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in backend.shapes]
    more = {"capturable": True} if capturable else {}
    optimizer = case.make(params, backend=backend.name, **more)
    for _ in range(3):
        for param in params:
            param.grad = torch.empty_like(param)
        if scaled:
            optimizer.grad_scale = torch.ones((), device="meta")
            if capturable:  # otherwise counters on the host need its value, and wait
                optimizer.found_inf = torch.zeros((), device="meta")
        backend.clear()
        with Calls() as calls:
            optimizer.step()
        backend.check_nothing_was_read(optimizer, capturable)
    if capturable:
        waits = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "unique")
        assert not [name for name in calls.count if name.split(".")[1] in waits]


def test_a_read_from_such_a_device_is_seen():
    with pytest.raises(RuntimeError, match="meta"):
        torch.empty((), device="meta").item()


@pytest.mark.parametrize("dtype", sweep([torch.bfloat16, torch.float32], [torch.bfloat16]), ids=str)
@pytest.mark.parametrize("shapes", LISTS)
@each_optimizer
def test_scratch_is_below_two_percent_of_the_parameters_or_34_mb(name, shapes, dtype, backend):
    """A unit leaves two float32 numbers for each column. In a large list it has 256 rows. In a
    small one there are at most four units for each of 128 multiprocessors, of 8192 columns."""
    params = a_list(LISTS[shapes], dtype)
    optimizer = OPTIMIZERS[name](params)
    optimizer.backend = backend.name
    optimizer.step()
    used, size = optimizer._plan.scratch_bytes(), sum(p.nbytes for p in params)
    assert used <= max(0.02 * size, 4 * 128 * 8192 * 2 * 4), f"{used / size:.2%}"
