"""The host's side of the Triton backend: what it launches, copies, keeps and waits for. Here its
launches are recorded and not carried out."""

import importlib.util
from collections import Counter
from contextlib import nullcontext

import pytest
import torch

pytest.importorskip("triton", minversion="3.4")

import fusedstep.backends.triton
import fusedstep.optim
from fusedstep import __main__, backends, check
from fusedstep.gpu import cut, tables
from fusedstep.kernels import launch
from fusedstep.plan import plan
from fusedstep.plan.watch import PythonWatch
from tests.support.calls import Calls
from tests.support.cases import CASES, each, make_params, set_grads
from tests.support.parameter_lists import LISTS, OPTIMIZERS, a_list, each_optimizer
from tests.support.rule_cases import FACTORED, is_factored

CASE = {case.name: case for case in CASES}
# A vector, a matrix, one of several blocks of rows, long rows, tiny matrices, an aligned matrix.
SHAPES = [(3,), (4, 5), (300, 33), (2, 2064), (40, 3, 3), (64, 64)]


@pytest.fixture
def launched(monkeypatch):
    """(kind of work, arguments) of each launch."""
    found = []

    def run(kernel, programs, arguments, options):
        found.append((arguments.get("KIND"), arguments))

    monkeypatch.setattr(launch, "run", run)
    monkeypatch.setattr(fusedstep.backends.triton.TritonBackend, "why_absent", lambda self: "")
    monkeypatch.setattr(fusedstep.backends.triton.TritonBackend, "devices", lambda self: ("cpu",))
    return found


def started(case, shapes, groups=({},)):
    params = make_params(shapes)
    made = [{"params": params[k :: len(groups)], **own} for k, own in enumerate(groups)]
    optimizer = case.make(made, backend="triton")
    set_grads(params, 0)
    optimizer.step()
    return optimizer, params


# What is launched.

# Of SHAPES. Two kinds of work are there for vectors, two for tiny matrices, three for long rows,
# one for blocks of rows. Three are there for each width of tiles, and that of the matrices that are
# aligned, FINISH for vectors and matrices. Then what some rules need: sums of p^2, of u^2 where a
# cap is, rms(p) for those who show it and do not need it.
EVERY, SQUARES, ENERGY, REPORT = 8 + 3 + 4 + 2, 4, 4, 2
LAUNCHES = {
    "torch": EVERY + SQUARES + ENERGY,
    "scaled": EVERY + SQUARES,
    "not scaled": EVERY + REPORT,
}


def kind_of(case):
    if case.ours is fusedstep.optim.Adafactor:
        return "torch"
    return "scaled" if case.options.get("scale_parameter", True) else "not scaled"


@pytest.mark.parametrize("copies", [1, 10, 150])
@each(CASES)
def test_launches_do_not_grow_with_the_number_of_parameters(case, copies, launched):
    optimizer, _ = started(case, copies * SHAPES)
    for _ in range(2):
        launched.clear()
        optimizer.step()
        assert len(launched) == (LAUNCHES[kind_of(case)] if is_factored(case) else 1)


OPTIONAL = {"torch": {"SQUARES", "ENERGY"}, "scaled": {"SQUARES"}, "not scaled": {"REPORT"}}


@each(FACTORED)
def test_work_that_would_find_nothing_is_not_launched(case, launched):
    started(case, SHAPES)
    always = set(cut.PHASES).difference(*OPTIONAL.values())
    assert {kind for kind, _ in launched} == always | OPTIONAL[kind_of(case)]


def test_one_group_that_needs_it_is_enough(launched):
    groups = ({}, {"scale_parameter": False})
    started(CASE["hf-adafactor-scaled"], 2 * [(4, 5)], groups)
    assert {"SQUARES", "REPORT"} <= {kind for kind, _ in launched}
    launched.clear()
    started(CASE["adafactor"], 2 * [(4, 5)], ({"eps": (0.0, 1e-3)}, {}))  # no cap, and one
    assert "ENERGY" in {kind for kind, _ in launched}
    launched.clear()
    started(CASE["adafactor"], 2 * [(4, 5)], ({"eps": (0.0, 1e-3)},))
    assert "ENERGY" not in {kind for kind, _ in launched}


def test_phases_are_launched_in_order(launched):
    started(CASE["adafactor"], SHAPES)
    phases = [cut.PHASES[kind] for kind, arguments in launched if not arguments["VECTOR"]]
    assert phases == sorted(phases)


def work(launched, params):
    """How often each unit of a parameter is worked on in each way; parameters go by their shape."""
    found = Counter()
    for kind, arguments in launched:
        addresses = {p.data_ptr(): tuple(p.shape) for p in params}
        for tensor, unit in arguments["entries" if kind else "chunks"].tolist():
            shape = addresses[arguments["table"][tensor, 0].item()]
            sizes = arguments.get("WIDTH"), arguments.get("TILE"), arguments["ALIGNED"]
            found[kind, shape, unit, sizes] += 1
    return found


@each([CASE["adamw"], CASE["adafactor"], CASE["hf-adafactor-momentum"]])
def test_work_does_not_depend_on_the_order_of_parameters(case, launched):
    found = []
    for shapes in (SHAPES, SHAPES[::-1], SHAPES[3:] + SHAPES[:3]):
        launched.clear()
        _, params = started(case, shapes)
        found.append(work(launched, params))
        assert set(found[0].values()) == {1}
        assert found[-1] == found[0]


# What is copied and waited for.


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
@pytest.mark.usefixtures("launched")
def test_only_what_changed_is_copied_again(case, uploaded):
    optimizer, params = started(case, [(4, 5), (3, 3)])
    (bucket,) = optimizer._plan.buckets

    def copied():
        uploaded.clear()
        optimizer.step()
        assert optimizer._plan.buckets == [bucket]
        own = {id(bucket.table): "table", id(bucket.rows.row_of): "row_of"}
        return sorted(own.get(id(tensor), "scalars") for tensor in uploaded)

    for _ in range(3):  # a row of numbers for each group: they change with every step
        assert copied() == ["scalars"]
    params[1].grad = params[1].grad.clone()
    assert copied() == ["scalars", "table"]
    assert copied() == ["scalars"]
    state = optimizer.state[params[0]]
    state["step"] += 5
    assert copied() == ["row_of", "scalars"]
    assert copied() == ["scalars"]


def calls_of_a_step(case, shapes):
    params = make_params(shapes)
    optimizer = case.make([{"params": params[::2]}, {"params": params[1::2]}], backend="triton")
    for step in range(3):
        set_grads(params, step)
        with Calls() as calls:
            optimizer.step()
    return calls.count


@each(CASES)
@pytest.mark.usefixtures("launched")
def test_calls_of_torch_do_not_grow_with_the_number_of_parameters(case):
    few, many = (calls_of_a_step(case, n * [(3,), (4, 5)]) for n in (5, 100))
    assert few == many
    assert sum(many.values()) < 50, many


def no_waiting(*_, **__):
    raise AssertionError("waits for a device")


@pytest.fixture
def meta(monkeypatch, launched):
    """Meta tensors pass for those of a GPU: they raise when their numbers are read."""
    monkeypatch.setattr(check, "check_tensors", lambda *_: None)
    monkeypatch.setattr(plan, "watch", PythonWatch)
    monkeypatch.setattr(fusedstep.backends.triton.TritonBackend, "devices", lambda self: ("meta",))
    monkeypatch.setattr(tables, "on_device", lambda device: nullcontext())
    monkeypatch.setattr(tables, "current_stream", lambda device: None)
    monkeypatch.setattr(tables, "upload", lambda tensor, device: tensor.to(device))
    for waiting in ("synchronize", "Stream.synchronize", "Event.synchronize", "Event.query"):
        monkeypatch.setattr(f"torch.cuda.{waiting}", no_waiting)
    return launched


@pytest.mark.parametrize("scaled", [False, True], ids=["", "scaled"])
@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
@each(CASES)
def test_nothing_is_read_from_a_device(case, capturable, scaled, meta):
    capturable = capturable and case.takes("capturable")  # else its counters are Python numbers
    params = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in SHAPES]
    more = {"capturable": True} if capturable else {}
    optimizer = case.make(params, backend="triton", **more)
    for _ in range(3):
        for param in params:
            param.grad = torch.empty_like(param)
        if scaled:
            optimizer.grad_scale = torch.ones((), device="meta")
            if capturable:  # else a counter of the host has to know, and wait
                optimizer.found_inf = torch.zeros((), device="meta")
        meta.clear()
        with Calls() as calls:
            optimizer.step()
    assert meta
    for _, arguments in meta:
        assert {t.device.type for t in arguments.values() if torch.is_tensor(t)} == {"meta"}
    if capturable:
        waits = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "unique")
        assert not [name for name in calls.count if name.split(".")[1] in waits]


def test_a_read_from_such_a_device_is_seen():
    with pytest.raises(RuntimeError, match="meta"):
        torch.empty((), device="meta").item()


# Memory.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shapes", LISTS)
@each_optimizer
@pytest.mark.usefixtures("launched")
def test_scratch_is_below_two_percent_of_the_parameters(name, shapes, dtype):
    params = a_list(LISTS[shapes], dtype)
    optimizer = OPTIMIZERS[name](params)
    optimizer.backend = "triton"
    optimizer.step()
    used, size = optimizer._plan.scratch_bytes(), sum(p.nbytes for p in params)
    assert used <= 0.02 * size, f"{used / size:.2%}"


# Which backend runs where.


@pytest.fixture
def without_triton(monkeypatch):
    """Takes it away, as far as imports tell."""
    real, asked = importlib.util.find_spec, fusedstep.backends.triton.why_not_installed

    def take():
        asked.cache_clear()
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == "triton" else real(name)
        )

    yield take
    asked.cache_clear()


def test_info_says_why_triton_is_absent(without_triton):
    assert "triton     absent: no GPU: torch finds no cuda and no xpu device" in __main__.info()
    without_triton()
    assert "triton     absent: Triton is not installed: install the one" in __main__.info()
    assert "cpu tensors: auto takes cpu" in __main__.info()
    assert "cuda tensors: auto takes reference" in __main__.info()


def test_auto_takes_triton_where_it_runs(monkeypatch):
    monkeypatch.setattr(backends.BACKENDS["cuda"], "why_absent", lambda: "not built")
    monkeypatch.setattr(fusedstep.backends.triton.TritonBackend, "why_absent", lambda self: "")
    names = [backends.choose("auto", torch.device(d), "").name for d in ("cpu", "cuda", "xpu")]
    assert names == ["cpu", "triton", "triton"]


def test_triton_refuses_a_parameter_on_the_cpu(monkeypatch):
    params = make_params([(4, 5)])
    optimizer = fusedstep.optim.AdamW([("fc.weight", params[0])], backend="triton")
    set_grads(params, 0)
    with pytest.raises(RuntimeError, match=r"backend='triton' is not available: no GPU"):
        optimizer.step()
    monkeypatch.setattr(fusedstep.backends.triton.TritonBackend, "why_absent", lambda self: "")
    with pytest.raises(RuntimeError, match=r"cuda, xpu, not parameter 0 .*'fc\.weight'.*'auto'"):
        optimizer.step()
    assert not any(optimizer.state.values())
