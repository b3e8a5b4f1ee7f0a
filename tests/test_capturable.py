"""Steps whose counters are on a device wait for nothing, and can be captured in a graph. There is
no device in these tests: tensors on the CPU that count as far away, and meta tensors, which raise
when they are read."""

import collections
import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fusedstep.hf
import fusedstep.optim
from cases import DTYPES, make_params, same_bits, set_grads, states
from fusedstep import backends, check, reference, steps
from fusedstep.optim import planned
from fusedstep.watch import PythonWatch

SHAPES = [(), (7,), (1025,), (1, 9), (33, 17), (3, 5, 7), (0,), (300, 260)]
ADAMW, ADAFACTOR, OLD_ADAMW = fusedstep.optim.AdamW, fusedstep.optim.Adafactor, fusedstep.hf.AdamW


def tensor(x):
    return torch.tensor(x, dtype=torch.float64)


def tensor_betas():
    return {"lr": tensor(0.02), "betas": (tensor(0.8), tensor(0.95)), "capturable": True}


# What makes the options: tensors in them belong to one optimizer each.
OPTIONS = {
    "adamw": (ADAMW, lambda: {"lr": 0.05, "capturable": True}),
    "adamw-fused": (ADAMW, lambda: {"lr": 0.05, "fused": True, "weight_decay": 0.1}),
    "adamw-amsgrad": (ADAMW, lambda: {"amsgrad": True, "betas": (0.8, 0.6), "capturable": True}),
    "adamw-maximize": (ADAMW, lambda: {"maximize": True, "eps": 1e-3, "capturable": True}),
    "adamw-tensor-lr": (ADAMW, lambda: {"lr": tensor(0.05), "capturable": True}),
    "adamw-tensor-betas": (ADAMW, tensor_betas),
    "adamw-only-lr": (ADAMW, lambda: {"lr": tensor(0.05)}),
    "adafactor": (ADAFACTOR, lambda: {"capturable": True}),
    "adafactor-maximize": (
        ADAFACTOR,
        lambda: {"lr": 0.3, "weight_decay": 0.2, "maximize": True, "d": 2.0, "capturable": True},
    ),
    "adafactor-capped": (ADAFACTOR, lambda: {"eps": (8e-3, 1e-3), "capturable": True}),
    "adafactor-tensor-lr": (
        ADAFACTOR,
        lambda: {"lr": tensor(0.4), "beta2_decay": -0.5, "capturable": True},
    ),
    "old-adamw-lr": (
        OLD_ADAMW,
        lambda: {"lr": tensor(0.05), "weight_decay": 0.2, "no_deprecation_warning": True},
    ),
}
each_option = pytest.mark.parametrize("name", OPTIONS)
each_torch = pytest.mark.parametrize("name", [n for n in OPTIONS if not n.startswith("old")])


class Recorder:
    """A backend that does nothing but remember what it was given."""

    name = "recorder"

    def __init__(self):
        self.launched = []
        self.rows = []  # of each launch, a row for each member

    def why_absent(self):
        return ""

    def devices(self):
        return ("cpu", "meta")

    def prepare(self, bucket):
        pass

    def scratch_bytes(self, bucket):
        return 0

    def launch(self, bucket, scalars, inv_grad_scale, found_inf):
        self.launched.append((bucket, scalars))
        if scalars.device.type == "cpu":
            self.rows.append(scalars[bucket.row_of])


@pytest.fixture
def recorder(monkeypatch):
    made = Recorder()
    monkeypatch.setitem(backends.BACKENDS, made.name, made)
    return made


@pytest.fixture
def away(monkeypatch):
    """Lets all tensors, or some, count as far away from now on; `away(False)` ends it."""

    def switch(on=True, only=None):
        near = REAL_ON_HOST if not on else lambda t: only and not any(t is x for x in only)
        monkeypatch.setattr(steps, "on_host", near)

    return switch


REAL_ON_HOST = steps.on_host


@pytest.fixture
def meta(monkeypatch, recorder):
    """Lets meta tensors pass for those of a device."""
    monkeypatch.setattr(check, "check_tensors", lambda *_: None)
    monkeypatch.setattr(planned, "watch", PythonWatch)


@pytest.fixture
def meta_reference(monkeypatch, meta):
    monkeypatch.setattr(reference, "devices", lambda: ("cpu", "meta"))


@pytest.fixture
def capturing(monkeypatch):
    """Devices whose stream is being captured."""
    devices = set()
    monkeypatch.setattr(steps, "is_capturing", lambda device: device.type in devices)
    return devices


def make(name, params, backend="reference", capturable=True):
    """Three groups of other options; without `capturable`, the peer's counters on the host."""
    kind, options = OPTIONS[name]
    values = options()
    if not capturable:
        values |= {key: False for key in ("capturable", "fused") if key in values}
    groups = [
        {"params": params[::3]},
        {"params": params[1::3], "weight_decay": 0.3},
        {"params": params[2::3], "lr": tensor(0.01)},
    ]
    return kind([g for g in groups if g["params"]], **values, backend=backend)


def run(optimizer, params, rounds, scaled=False, first=0):
    """Steps in which another parameter has no gradient each time, and one that finds an
    infinity."""
    for step in range(first, first + rounds):
        set_grads(params, step, scale=8.0 if scaled else 1.0)
        if step in (1, 2):
            params[step].grad = None
        if scaled:
            optimizer.grad_scale = torch.tensor(8.0)
            optimizer.found_inf = torch.tensor(1.0 if step == 3 else 0.0)
        optimizer.step()


def on_both_ways(name, shapes, dtype, away, rounds=5, scaled=False):
    runs = []
    for far in (False, True):
        away(far)
        params = make_params(shapes, dtype)
        optimizer = make(name, params, capturable=far)
        run(optimizer, params, rounds, scaled)
        runs.append((optimizer, params))
    return runs


# The numbers.


@each_option
def test_scalars_of_a_device_are_those_of_the_host(name, away, recorder):
    """A power beta^t may differ by a unit in the last place: 2^-53, towards 1 - beta^t, which is at
    least 1 - beta. Few roundings follow."""
    found = []
    for far in (False, True):
        away(far)
        params = make_params([(3,), (4, 5), (2,), (6,)] * 3)
        optimizer = make(name, params, "recorder", capturable=far)
        recorder.rows = []
        for number in (0, 1, 7, 1000, 123_456):
            run(optimizer, params, 3)
            for k, param in enumerate(params):
                step = optimizer.state[param]["step"]
                if isinstance(step, torch.Tensor):
                    step.fill_(number + k)
                else:
                    optimizer.state[param]["step"] = number + k
        found.append(recorder.rows)
    assert len(found[0]) == len(found[1]) >= 15
    for host, device in zip(*found, strict=True):
        assert device.dtype == torch.float64 and device.is_contiguous()
        bound = torch.full_like(host, 1e-15)
        if "adamw" in name:
            one_minus_beta = torch.minimum(host[:, 2:3], host[:, 4:5])
            bound[:, -2:] += 2.0**-52 / one_minus_beta
        error = (host - device).abs() / host.abs().clamp(min=1e-300)
        assert ((host == device) | (error <= bound)).all(), (error / bound).amax(0)


@pytest.mark.parametrize("scaled", [False, True], ids=["", "scaled"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_torch
def test_a_step_on_a_device_has_the_results_of_the_host(name, dtype, scaled, away):
    (host, host_params), (far, far_params) = on_both_ways(name, SHAPES, dtype, away, scaled=scaled)
    assert any(torch.is_tensor(s["step"]) for s in far.state.values())
    assert far._plan.counted_away or name == "adamw-only-lr"
    for p, q in zip(host_params, far_params, strict=True):
        own, other = states(host, p), states(far, q)
        assert own.keys() == other.keys()
        assert own["step"] == other["step"]
        for key, value in {**own, "p": p.detach()}.items():
            got = q.detach() if key == "p" else other[key]
            if dtype == torch.float64:
                # Five steps of at most lr, with scalars that differ by 2^-53 / (1 - beta2).
                torch.testing.assert_close(value, got, rtol=1e-12, atol=1e-12)
            else:
                assert same_bits(value, got), (key, tuple(p.shape))


def test_an_lr_on_a_device_goes_with_counters_of_the_host(away):
    """Of both kinds of counters, while some parameters fall behind."""
    for name in ("adamw-only-lr", "old-adamw-lr"):
        (host, host_params), (far, far_params) = on_both_ways(name, SHAPES, torch.float32, away)
        assert {s["step"].item() if torch.is_tensor(s["step"]) else s["step"]
                for s in far.state.values()} == {4, 5}  # fmt: skip
        for p, q in zip(host_params, far_params, strict=True):
            torch.testing.assert_close(p, q, rtol=2.5e-7, atol=0.0)
            assert host.state[p]["step"] == far.state[q]["step"]


def test_an_lr_may_become_a_tensor_of_a_device_and_a_number_again(away):
    twins = []
    for kind in ("numbers", "tensors"):
        away(False)
        params = make_params(SHAPES)
        lr = tensor(0.03)
        optimizer = ADAMW(params, lr=0.05, backend="reference")
        for step in range(6):
            if kind == "tensors":
                away(only=[lr, *params])  # the counters are not
            optimizer.param_groups[0]["lr"] = 0.05 if step % 3 else 0.03
            if kind == "tensors" and not step % 3:
                optimizer.param_groups[0]["lr"] = lr
            set_grads(params, step)
            optimizer.step()
            if kind == "tensors":
                (bucket,) = optimizer._plan.buckets
                assert bool(bucket.keys) == bool(step % 3)
        twins.append(params)
    for p, q in zip(*twins, strict=True):
        torch.testing.assert_close(p, q, rtol=2.5e-7, atol=0.0)


# What is waited for, and what is called.


class Calls(TorchDispatchMode):
    """Counts the operators of torch that are called while it is active."""

    def __init__(self):
        super().__init__()
        self.count = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count[str(func)] += 1
        return func(*args, **(kwargs or {}))

    def waits(self):
        words = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "unique")
        return [name for name in self.count if name.split(".")[1] in words]


def a_counted_step(optimizer, params, scaled=False):
    for step in range(3):
        set_grads(params, step)
        if scaled:
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(0.0)
        with Calls() as calls:
            optimizer.step()
    return calls


@each_option
@pytest.mark.parametrize("scaled", [False, True], ids=["", "scaled"])
def test_nothing_is_read_from_a_device(name, scaled, away, recorder):
    if scaled and name.startswith("old"):
        pytest.skip("its counters are Python numbers: found_inf has to be read")
    for backend in ("recorder", "reference"):
        away()
        params = make_params(SHAPES)
        calls = a_counted_step(make(name, params, backend), params, scaled)
        assert not calls.waits()


def test_the_count_of_calls_sees_a_read(away):
    away(False)
    params = make_params(SHAPES)
    assert a_counted_step(make("adamw", params, capturable=False), params).waits()


@each_option
def test_calls_for_scalars_grow_with_the_groups_alone(name, away, recorder):
    away()
    counts = []
    for n in (3, 60):
        params = make_params(n * [(3,), (4,)])
        counts.append(a_counted_step(make(name, params, "recorder"), params).count)
    assert counts[0] == counts[1]
    assert sum(counts[1].values()) <= 3 * 30, counts[1]


def to_meta(params):
    made = [torch.nn.Parameter(torch.empty_like(p, device="meta")) for p in params]
    for param in made:
        param.grad = torch.empty_like(param)
    return made


@each_torch
@pytest.mark.parametrize("backend", ["recorder", "reference"])
def test_tensors_that_cannot_be_read_can_be_stepped(name, backend, meta_reference, recorder):
    if name == "adamw-only-lr":
        pytest.skip("its counters are on the host")
    params = to_meta(make_params(SHAPES))
    optimizer = make(name, params, backend)
    for group in optimizer.param_groups:
        if torch.is_tensor(group["lr"]):
            group["lr"] = group["lr"].to("meta")
    for step in range(3):
        params[step].grad = None
        if step == 2:
            optimizer.grad_scale = torch.ones((), device="meta")
            optimizer.found_inf = torch.zeros((), device="meta")
        optimizer.step()
        assert {s["step"].device.type for s in optimizer.state.values()} == {"meta"}
    assert all(scalars.device.type == "meta" for _, scalars in recorder.launched)
    assert recorder.launched or backend == "reference"


@pytest.mark.parametrize("name", ["adamw-fused", "adafactor"])
def test_parameters_of_two_devices_are_stepped_each_in_its_way(name, meta, recorder):
    """Those of the host have the bits of an optimizer of their own."""
    near, alone = make_params(SHAPES), make_params(SHAPES)
    far = to_meta(make_params(SHAPES))
    kind, options = OPTIONS[name]
    values = {k: v for k, v in options().items() if k != "capturable"}
    groups = [{"params": near}, {"params": far}]
    if name == "adafactor":
        groups[1]["capturable"] = True
    mixed, single = kind(groups, **values), kind(alone, **values)
    for step in range(3):
        set_grads(near, step)
        set_grads(alone, step)
        mixed.step()
        single.step()
    assert all(map(torch.equal, near, alone))
    devices = [(bucket.device.type, scalars.device.type) for bucket, scalars in recorder.launched]
    assert set(devices) == {("meta", "meta")}
    for flat in mixed._plan.steps.flats:
        assert flat.device.type == "meta" or flat.tolist() == [3.0] * len(SHAPES)


def test_a_group_may_be_on_two_devices(meta, recorder):
    near, far = make_params([(3,), (4,)]), to_meta(make_params([(3,), (4,)]))
    optimizer = ADAMW([near[0], far[0], near[1], far[1]], fused=True)
    for step in range(2):
        set_grads(near, step)
        optimizer.step()
    assert len(optimizer._plan.steps.flats) == 2
    assert [tuple(scalars.shape) for _, scalars in recorder.launched] == [(2, 9), (2, 9)]
    assert [optimizer.state[p]["step"].item() for p in near] == [2.0, 2.0]


# Graphs.


@pytest.fixture
def ready(meta, recorder, capturing):
    """An optimizer of a device after its first step, whose gradients stay in place."""

    def build(steps_before=1, kind=ADAMW, **options):
        params = to_meta(make_params([(3,), (4, 5)]))
        options = {"capturable": True, **options, "backend": "recorder"}
        optimizer = kind(list(zip(("fc.bias", "fc.weight"), params, strict=True)), **options)
        for _ in range(steps_before):
            optimizer.step()
        return optimizer, params

    return build


@pytest.mark.parametrize("kind", [ADAMW, ADAFACTOR])
def test_a_captured_plan_lives_as_long_as_the_optimizer(kind, ready, capturing, recorder):
    optimizer, params = ready(kind=kind)
    plan = optimizer._plan
    assert optimizer._captured == []
    capturing.add("meta")
    for _ in range(2):
        optimizer.step()
        assert optimizer._captured == [plan]
    assert len(recorder.launched) == 3 * len(plan.buckets)
    capturing.clear()
    params[0].grad = None
    optimizer.step()
    assert optimizer._plan is not plan
    assert optimizer._captured == [plan]


def test_a_captured_optimizer_is_freed_without_the_garbage_collector(ready, capturing, recorder):
    gc.collect()
    gc.disable()
    try:
        optimizer, params = ready()
        capturing.add("meta")
        optimizer.step()
        recorder.launched.clear()
        gone, param_gone = weakref.ref(optimizer), weakref.ref(params[1])
        del optimizer, params
        assert gone() is None
        assert param_gone() is None
    finally:
        gc.enable()


def test_a_first_step_cannot_be_captured(ready, capturing):
    optimizer, _ = ready(steps_before=0)
    capturing.add("meta")
    with pytest.raises(RuntimeError, match="AdamW: run one warm-up step before capture"):
        optimizer.step()
    assert not any(optimizer.state.values())
    capturing.clear()
    optimizer.step()
    capturing.add("meta")
    optimizer.step()


def test_a_change_of_what_is_stepped_cannot_be_captured(ready, capturing):
    optimizer, params = ready()
    plan, kept = optimizer._plan, dict(optimizer.state[params[0]])
    params[0].grad = None
    capturing.add("meta")
    with pytest.raises(RuntimeError, match="warm-up step before capture"):
        optimizer.step()
    assert optimizer._plan is plan
    assert all(optimizer.state[params[0]][key] is value for key, value in kept.items())


@pytest.mark.parametrize("steps_before", [0, 1])
@pytest.mark.parametrize("kind", [ADAMW, ADAFACTOR])
def test_counters_on_the_host_cannot_be_captured(kind, steps_before, ready, capturing, recorder):
    optimizer, _ = ready(steps_before, kind, capturable=False)
    before = len(recorder.launched)
    capturing.add("meta")
    with pytest.raises(RuntimeError, match=rf"{kind.__name__}.*capturable=True.*'fc\.bias'"):
        optimizer.step()
    assert len(recorder.launched) == before
    assert [s["step"] for s in optimizer.state.values() if s] == [1, 1][: 2 * steps_before]
    assert optimizer._captured == []


@pytest.mark.parametrize("steps_before", [0, 1])
@pytest.mark.parametrize("kind", [fusedstep.hf.Adafactor, OLD_ADAMW])
def test_python_counters_cannot_be_captured(kind, steps_before, meta, recorder, capturing):
    params = to_meta(make_params([(3,)]))
    more = {"no_deprecation_warning": True} if kind is OLD_ADAMW else {"scale_parameter": False}
    optimizer = kind(params, backend="recorder", **more)
    for _ in range(steps_before):
        optimizer.step()
    capturing.add("meta")
    with pytest.raises(
        RuntimeError,
        match=rf"{kind.__name__} keeps Python step counters.*"
        r"fusedstep\.optim\.Adafactor\(\.\.\., capturable=True\)",
    ):
        optimizer.step()
    assert [s["step"] for s in optimizer.state.values() if s] == [1][:steps_before]


def test_parameters_of_the_host_cannot_be_captured_with_others(meta, recorder, capturing):
    near, far = make_params([(3,)]), to_meta(make_params([(3,)]))
    set_grads(near, 0)
    optimizer = ADAMW([*far, *near], fused=True, backend="recorder")
    optimizer.step()
    capturing.add("meta")
    with pytest.raises(RuntimeError, match=r"parameter 1 of group 0.*optimizer of its own"):
        optimizer.step()


def test_nobody_asks_for_captures_on_the_host(monkeypatch):
    def asked(device):
        raise AssertionError("asked")

    monkeypatch.setattr(steps, "is_capturing", asked)
    params = make_params(SHAPES)
    for optimizer in (ADAMW(params), ADAFACTOR(params), fusedstep.hf.Adafactor(params)):
        set_grads(params, 0)
        optimizer.step()


def test_the_host_captures_nothing():
    assert not steps.is_capturing(torch.device("cpu"))
    assert not steps.is_capturing(torch.device("meta"))


def move_gradients(params):
    for param in params:
        param.grad = param.grad.clone()


def test_a_captured_plan_is_given_up_when_gradients_move(away, recorder, capturing):
    """The graph goes on to read the addresses that it was captured with."""
    away()
    params = make_params([(3,), (4, 5)])
    optimizer = ADAMW(params, capturable=True, backend="recorder")
    set_grads(params, 0)
    optimizer.step()
    kept = [param.grad for param in params]
    move_gradients(params)
    capturing.add("cpu")
    optimizer.step()  # may move once: into the graph's own memory
    graph = optimizer._plan
    (flat,) = graph.steps.flats
    kept += [param.grad for param in params]
    move_gradients(params)
    for reason in (r"captured before.*warm-up.*set_to_none=False", "run one warm-up"):
        with pytest.raises(RuntimeError, match=reason):
            optimizer.step()
        assert optimizer._captured == [graph]
    capturing.clear()
    optimizer.step()
    assert optimizer._plan is not graph
    assert optimizer._plan.steps.flats[0].data_ptr() == flat.data_ptr()
    assert flat.tolist() == [3.0, 3.0]


def test_a_plan_whose_gradients_moved_after_capture_is_never_used_again(away, recorder, capturing):
    away()
    params = make_params([(3,), (4, 5)])
    optimizer = ADAMW(params, capturable=True, backend="recorder")
    set_grads(params, 0)
    capturing.clear()
    optimizer.step()
    capturing.add("cpu")
    optimizer.step()
    graph, grads = optimizer._plan, [param.grad for param in params]
    move_gradients(params)
    with pytest.raises(RuntimeError, match="captured before"):
        optimizer.step()
    capturing.clear()
    assert optimizer._plan is None
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    optimizer.step()
    assert optimizer._plan is not graph


# The memory that a graph and later plans share.


@pytest.mark.parametrize("kind", [ADAMW, ADAFACTOR])
def test_later_plans_count_where_the_first_one_did(kind):
    params = make_params([(3,), (4, 5), (6,)])
    optimizer = kind(params)
    set_grads(params, 0)
    optimizer.step()
    first, counters = optimizer._plan.steps.flats[0], [optimizer.state[p]["step"] for p in params]

    optimizer._plan = None
    optimizer.step()
    assert optimizer._plan.steps.flats[0].data_ptr() == first.data_ptr()
    params[0].grad = None  # the others still are consecutive
    optimizer.step()
    assert optimizer._plan.steps.flats[0].data_ptr() == counters[1].data_ptr()
    assert all(optimizer.state[p]["step"] is c for p, c in zip(params, counters, strict=True))
    assert first.tolist() == [2.0, 3.0, 3.0]

    set_grads(params, 1)
    params[1].grad = None
    optimizer.step()  # with a gap: they have to move
    assert first.tolist() == [2.0, 3.0, 3.0]
    assert [optimizer.state[p]["step"].item() for p in params] == [3.0, 3.0, 4.0]


def test_counters_in_another_order_get_memory_of_their_own():
    params = make_params([(3,), (4, 5)])
    optimizer = ADAMW(params)
    set_grads(params, 0)
    optimizer.step()
    first = optimizer._plan.steps.flats[0]
    optimizer.param_groups[0]["params"].reverse()
    optimizer.state[params[0]]["step"].fill_(7.0)
    optimizer.step()
    assert optimizer._plan.steps.flats[0].data_ptr() != first.data_ptr()
    assert [optimizer.state[p]["step"].item() for p in params] == [8.0, 2.0]


def test_counters_that_are_one_tensor_are_counted_apart():
    params = make_params([(3,), (4,)])
    optimizer = ADAMW(params)
    set_grads(params, 0)
    optimizer.step()
    optimizer.state[params[0]]["step"] = optimizer.state[params[1]]["step"]
    optimizer.step()
    assert [optimizer.state[p]["step"].item() for p in params] == [2.0, 2.0]


def test_a_backend_is_told_when_a_cell_of_the_table_was_written(recorder):
    params = make_params([(3,), (4,)])
    optimizer = ADAMW(params, backend="recorder")

    def changed():
        optimizer.step()
        (bucket,) = optimizer._plan.buckets
        changed, bucket.table_changed = bucket.table_changed, False
        return changed

    set_grads(params, 0)
    assert changed()
    assert not changed()
    kept = params[1].grad
    params[1].grad = kept.clone()
    assert changed()
    assert not changed()
    plan, grads = optimizer._plan, [param.grad for param in params]
    params[0].grad = grads[0].clone()
    params[1].grad = grads[1].to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()  # the first cell may have been written before the watch saw the second
    params[1].grad = grads[1]
    assert changed()
    assert optimizer._plan is plan
    assert plan.buckets[0].table[0, 1] == params[0].grad.data_ptr()


# Copies and checkpoints.


@pytest.mark.parametrize("carry", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@each_torch
def test_a_copy_of_a_captured_optimizer_goes_on_by_itself(name, carry, away, recorder, capturing):
    away()
    params = make_params(SHAPES)
    optimizer = make(name, params, "reference")
    set_grads(params, 0)
    optimizer.step()
    if name != "adamw-only-lr":
        capturing.add("cpu")
        if any(REAL_ON_HOST(s["step"]) for s in optimizer.state.values()):
            optimizer.step()
        assert len(optimizer._captured) == 1
        capturing.clear()
    other, twins = carry((optimizer, params))
    assert other._captured == [] and other._plan is None
    for own, own_params in ((optimizer, params), (other, twins)):
        set_grads(own_params, 1)
        own.step()
    assert all(map(torch.equal, params, twins))
    for p, q in zip(params, twins, strict=True):
        assert optimizer.state[p]["step"] == other.state[q]["step"]
        assert optimizer.state[p]["step"].data_ptr() != other.state[q]["step"].data_ptr()


def test_loading_keeps_what_graphs_read(ready, capturing):
    optimizer, _ = ready()
    capturing.add("meta")
    optimizer.step()
    (plan,) = optimizer._captured
    capturing.clear()
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer._captured == [plan]


def test_adafactor_stays_capturable_when_it_takes_over_torchs_checkpoint(meta):
    params, near = to_meta(make_params([(3,), (4, 5)])), make_params([(3,), (4, 5)])
    set_grads(near, 0)
    peer = torch.optim.Adafactor(near)
    peer.step()
    optimizer = ADAFACTOR(params, capturable=True, backend="recorder")
    optimizer.load_state_dict(peer.state_dict())
    assert optimizer.param_groups[0]["capturable"] is True
    optimizer.step()
    assert {s["step"].device.type for s in optimizer.state.values()} == {"meta"}


def test_torchs_adafactor_takes_over_a_checkpoint_of_ours():
    params, others = make_params([(3,), (4, 5)]), make_params([(3,), (4, 5)])
    ours, peer = ADAFACTOR(params), torch.optim.Adafactor(others)
    set_grads(params, 0)
    set_grads(others, 0)
    ours.step()
    peer.load_state_dict(ours.state_dict())
    peer.step()
    assert all(peer.state[p]["step"] == 2 for p in others)


@pytest.mark.parametrize("kind", [ADAMW, ADAFACTOR])
def test_capturable_is_refused_for_parameters_on_the_cpu(kind):
    params = make_params([(4, 5)])
    optimizer = kind([("fc.weight", params[0])], capturable=True)
    set_grads(params, 0)
    with pytest.raises(AssertionError) as error:
        optimizer.step()
    assert str(error.value).startswith(
        "If capturable=True, params and state_steps must be on supported devices: "
        f"['cuda', 'xpu']. {kind.__name__}: parameter 0 of group 0 ('fc.weight'"
    )
    assert not any(optimizer.state.values())


def test_an_option_that_is_switched_on_moves_the_counters(meta):
    params = to_meta(make_params([(3,), (4, 5)]))
    optimizer = ADAMW(params, backend="recorder")
    optimizer.step()
    assert {s["step"].device.type for s in optimizer.state.values()} == {"cpu"}
    optimizer.param_groups[0]["capturable"] = True
    for _ in range(2):
        optimizer.step()
        assert {s["step"].device.type for s in optimizer.state.values()} == {"meta"}
