"""Steps with counters on a device never wait, and have the same results as with host counters."""

import itertools

import pytest
import torch

from tests.support.calls import Calls
from tests.support.cases import DTYPES, assert_same, make_params, same_bits, set_grads, states
from tests.support.fake_device import (
    ADAMW,
    OPTIONS,
    SHAPES,
    each_option,
    each_torch,
    make,
    on_both_ways,
    run,
    tensor,
    to_meta,
)
from tests.support.sweeps import sweep
from tests.support.versions import TORCH

# The numbers.


@each_option
def test_scalars_of_a_device_are_those_of_the_host(name, on_device, recorder):
    """A power beta^t may differ by one unit in the last place, 2^-53. 1 - beta^t is at least
    1 - beta. Few roundings follow."""
    found = []
    for far in (False, True):
        on_device(far)
        params = make_params([(3,), (4, 5), (2,), (6,)] * 3)
        optimizer = make(name, params, "recorder", capturable=far)
        recorder.rows = []
        for number in (0, 1, 7, 1000, 123_456):
            run(optimizer, params, 3)
            for k, param in enumerate(params):
                step = optimizer.state[param].get("step")
                if isinstance(step, torch.Tensor):
                    step.fill_(number + k)
                elif step is not None:
                    optimizer.state[param]["step"] = number + k
        found.append(recorder.rows)
    assert len(found[0]) == len(found[1]) >= 15
    for host, device in zip(*found, strict=True):
        assert device.dtype == torch.float64 and device.is_contiguous()
        bound = torch.full_like(host, 1e-15)
        if "adamw" in name:
            one_minus_beta = torch.minimum(host[:, 2:3], host[:, 4:5])
            bound[:, -2:] += 2.0**-52 / one_minus_beta
        elif name in ("adam-decay", "adamax", "nadam", "radam"):
            bound += 2.0**-50 / 1e-3
        error = (host - device).abs() / host.abs().clamp(min=1e-300)
        assert ((host == device) | (error <= bound)).all(), (error / bound).amax(0)


@pytest.mark.parametrize(
    ("dtype", "scaled"),
    sweep(
        itertools.product(DTYPES, (False, True)),
        [(torch.float32, True), (torch.bfloat16, False), (torch.float64, False)],
    ),
    ids=str,
)
@each_torch
def test_a_step_on_a_device_has_the_results_of_the_host(name, dtype, scaled, on_device):
    (host, host_params), (far, far_params) = on_both_ways(
        name, SHAPES, dtype, on_device, scaled=scaled
    )
    assert far._plan.counted_on_device or name == "adamw-only-lr"
    for p, q in zip(host_params, far_params, strict=True):
        own, other = states(host, p), states(far, q)
        assert own.keys() == other.keys()
        assert own.get("step") == other.get("step")
        for key, value in {**own, "p": p.detach()}.items():
            got = q.detach() if key == "p" else other[key]
            if dtype == torch.float64:
                # Five steps of at most lr each. Scalars differ by 2^-53 / (1 - beta2).
                torch.testing.assert_close(value, got, rtol=1e-12, atol=1e-12)
            else:
                assert same_bits(value, got), (key, tuple(p.shape))


@each_torch
def test_a_scale_on_a_device_may_have_a_dimension(name, on_device):
    on_device()
    runs = []
    for shape in ((), (1,)):
        params = make_params(SHAPES)
        optimizer = make(name, params)
        for step in range(3):
            set_grads(params, step, scale=8.0)
            optimizer.grad_scale = torch.full(shape, 8.0)
            optimizer.found_inf = torch.full(shape, float(step == 1))
            optimizer.step()
        runs.append((optimizer, params))
    assert_same(*runs[0], *runs[1])
    assert all(state.get("step", 2) == 2 for state in runs[1][0].state.values())


def test_an_lr_on_a_device_goes_with_counters_of_the_host(on_device):
    """Tensor and int counters, while some parameters fall behind."""
    for name in ("adamw-only-lr", "old-adamw-lr"):
        (host, host_params), (far, far_params) = on_both_ways(
            name, SHAPES, torch.float32, on_device
        )
        assert {s["step"].item() if torch.is_tensor(s["step"]) else s["step"]
                for s in far.state.values()} == {4, 5}  # fmt: skip
        for p, q in zip(host_params, far_params, strict=True):
            torch.testing.assert_close(p, q, rtol=2.5e-7, atol=0.0)
            assert host.state[p]["step"] == far.state[q]["step"]


def test_an_lr_may_become_a_tensor_of_a_device_and_a_number_again(on_device):
    twins = []
    for kind in ("numbers", "tensors"):
        on_device(False)
        params = make_params(SHAPES)
        lr = tensor(0.03)
        optimizer = ADAMW(params, lr=0.05, backend="reference")
        for step in range(6):
            if kind == "tensors":
                on_device(only=[lr, *params])  # the counters stay on the host
            optimizer.param_groups[0]["lr"] = 0.05 if step % 3 else 0.03
            if kind == "tensors" and not step % 3:
                optimizer.param_groups[0]["lr"] = lr
            set_grads(params, step)
            optimizer.step()
            if kind == "tensors":
                (bucket,) = optimizer._plan.buckets
                assert bool(bucket.rows.keys) == bool(step % 3)
        twins.append(params)
    for p, q in zip(*twins, strict=True):
        torch.testing.assert_close(p, q, rtol=2.5e-7, atol=0.0)


# Waits and calls.


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
def test_nothing_is_read_from_a_device(name, scaled, on_device, recorder):
    if scaled and name.startswith("old"):
        pytest.skip("its counters are Python numbers, so found_inf must be read")
    for backend in ("recorder", "reference"):
        on_device()
        params = make_params(SHAPES)
        calls = a_counted_step(make(name, params, backend), params, scaled)
        assert not calls.waits()


def test_the_count_of_calls_sees_a_read(on_device):
    on_device(False)
    params = make_params(SHAPES)
    assert a_counted_step(make("adamw-tensor-lr", params, capturable=False), params).waits()


# For a group. These have longer formulas, and the last two a history.
MOST_CALLS = {"radam": 36, "nadam": 61, "asgd": 39}


@each_option
def test_calls_for_scalars_grow_with_the_groups_alone(name, on_device, recorder):
    on_device()
    counts = []
    for n in (3, 60):
        params = make_params(n * [(3,), (4,)])
        counts.append(a_counted_step(make(name, params, "recorder"), params).count)
    assert counts[0] == counts[1]
    most = MOST_CALLS.get(name, 30) + (TORCH < (2, 7))
    assert sum(counts[1].values()) <= 3 * most, counts[1]


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
        numbers = [x for s in optimizer.state.values() for x in s.values() if x.dim() == 0]
        assert {x.device.type for x in numbers} == ({"meta"} if name != "sgd" else set())
    assert all(scalars.device.type == "meta" for _, scalars in recorder.launched)
    assert recorder.launched or backend == "reference"


@pytest.mark.parametrize("name", ["adamw-fused", "adafactor"])
def test_parameters_of_two_devices_are_stepped_each_in_its_way(name, meta, recorder):
    """Those on the host get the same bits as from a separate optimizer."""
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
    for flat in mixed._plan.counters.flats:
        assert flat.device.type == "meta" or flat.tolist() == [3.0] * len(SHAPES)


def test_a_group_may_be_on_two_devices(meta, recorder):
    near, far = make_params([(3,), (4,)]), to_meta(make_params([(3,), (4,)]))
    optimizer = ADAMW([near[0], far[0], near[1], far[1]], fused=True)
    for step in range(2):
        set_grads(near, step)
        optimizer.step()
    assert len(optimizer._plan.counters.flats) == 2
    assert [tuple(scalars.shape) for _, scalars in recorder.launched] == [(2, 10), (2, 10)]
    assert [optimizer.state[p]["step"].item() for p in near] == [2.0, 2.0]
