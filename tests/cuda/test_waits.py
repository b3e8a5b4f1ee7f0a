"""The host's side of the CUDA backend: what it copies and waits for, and on which stream it works.
Its launches are recorded and not carried out."""

import types
from contextlib import contextmanager, nullcontext

import pytest
import torch

import fusedstep.backends.cuda
from fusedstep import backends, check
from fusedstep.gpu import tables
from fusedstep.plan import plan
from fusedstep.plan.watch import PythonWatch
from tests.support import recorded_cuda
from tests.support.calls import Calls
from tests.support.cases import CASES, each, make_params, set_grads
from tests.support.recorded_cuda import SHAPES, started

CASE = {case.name: case for case in CASES}


@pytest.fixture
def module(monkeypatch):
    return recorded_cuda.register(monkeypatch)


@pytest.fixture
def uploaded(monkeypatch):
    """What is copied to the device."""
    real, found = tables.upload, []

    def upload(tensor, device):
        found.append(tensor)
        return real(tensor, device)

    monkeypatch.setattr(tables, "upload", upload)
    return found


@each([CASE["adamw"], CASE["adafactor"], CASE["hf-adafactor"]])
@pytest.mark.usefixtures("module")
def test_only_what_changed_is_copied_again(case, uploaded):
    optimizer, params = started(case, [(4, 5), (3, 3)])
    (bucket,) = optimizer._plan.buckets

    def copied():
        uploaded.clear()
        optimizer.step()
        assert optimizer._plan.buckets == [bucket]
        own = {id(bucket.table): "table", id(bucket.rows.row_of): "row_of"}
        return sorted(own.get(id(tensor), "scalars") for tensor in uploaded)

    for _ in range(3):
        assert copied() == ["scalars"]
    params[1].grad = params[1].grad.clone()
    assert copied() == ["scalars", "table"]
    assert copied() == ["scalars"]
    optimizer.state[params[0]]["step"] += 5
    assert copied() == ["row_of", "scalars"]
    assert copied() == ["scalars"]


@each(CASES)
@pytest.mark.usefixtures("module")
def test_calls_of_torch_do_not_grow_with_the_number_of_parameters(case):
    def calls_of_a_step(shapes):
        params = make_params(shapes)
        groups = [{"params": params[::2]}, {"params": params[1::2]}]
        optimizer = case.make(groups, backend="recorded")
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
def meta(monkeypatch, module):
    """Meta tensors pass for those of a GPU: they raise when their numbers are read."""
    monkeypatch.setattr(check, "check_tensors", lambda *_: None)
    monkeypatch.setattr(plan, "watch", PythonWatch)
    backend = backends.BACKENDS["recorded"]
    monkeypatch.setattr(backend, "_device_types", ("meta",))
    monkeypatch.setattr(tables, "on_device", lambda device: nullcontext())
    monkeypatch.setattr(tables, "current_stream", lambda device: None)
    monkeypatch.setattr(tables, "upload", lambda tensor, device: tensor.to(device))
    for waiting in ("synchronize", "Stream.synchronize", "Event.synchronize", "Event.query"):
        monkeypatch.setattr(f"torch.cuda.{waiting}", no_waiting)
    return module


@pytest.mark.parametrize("waves_on", ["0", "1"], ids=["phases", "waves"])
@pytest.mark.parametrize("scaled", [False, True], ids=["", "scaled"])
@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
@each(CASES)
def test_nothing_is_read_from_a_device(case, capturable, scaled, waves_on, meta, monkeypatch):
    monkeypatch.setenv(fusedstep.backends.cuda.WAVES, waves_on)
    capturable = capturable and case.takes("capturable")  # else its counters are Python numbers
    params = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in SHAPES]
    more = {"capturable": True} if capturable else {}
    optimizer = case.make(params, backend="recorded", **more)
    for _ in range(3):
        for param in params:
            param.grad = torch.empty_like(param)
        if scaled:
            optimizer.grad_scale = torch.ones((), device="meta")
            if capturable:  # else a counter of the host has to know, and wait
                optimizer.found_inf = torch.zeros((), device="meta")
        meta.launched.clear()
        with Calls() as calls:
            optimizer.step()
        assert len(meta.launched) == len(optimizer._plan.buckets)
    if capturable:
        waits = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "unique")
        assert not [name for name in calls.count if name.split(".")[1] in waits]
        assert all(idle == 0 for *_, idle in meta.launched)  # nobody has looked at the scalars


def test_work_is_launched_on_the_current_stream_of_the_tensors_device(module, monkeypatch):
    here, guarded, recorded = [types.SimpleNamespace(cuda_stream=77)], [], []

    @contextmanager
    def on_device(device):
        guarded.append(device)
        before = len(module.launched)
        yield
        assert len(module.launched) <= before + 1
        guarded.append("left")

    monkeypatch.setattr(tables, "on_device", on_device)
    monkeypatch.setattr(tables, "current_stream", lambda device: here[0])
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, s: recorded.append(s))
    optimizer, params = started(CASE["adamw"], [(4, 5)])
    assert guarded == 2 * [params[0].device, "left"]  # to prepare, and to launch
    optimizer.step()
    assert [stream for _, _, stream, _ in module.launched] == [77, 77] and not recorded
    here[0] = types.SimpleNamespace(cuda_stream=5)
    optimizer.step()
    assert module.launched[-1][2] == 5
    kept = optimizer._plan.launchers[0]
    assert recorded == (len(kept.kept) + len(kept.tables.held())) * [here[0]]
