"""Training on a device for the GPU tests, and comparison with the reference on the CPU.

The reference gets CPU copies of the same numbers. Elementwise rules must have its bits. Factored
rules add up in another order, so their error against float64 may be twice the reference's, with
the floor of four ulps that `contracts/test_peers.py` explains.
"""

import collections
import contextlib
import functools
import importlib.util

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import fusedstep.backends.cuda
import fusedstep.backends.triton
import fusedstep.hf
import fusedstep.optim
from fusedstep import backends
from tests.ptxrun.nvcc import tool
from tests.support.cases import CASES, SHAPES, make_params, same_bits, set_grads, states
from tests.support.layouts import plain
from tests.support.rule_cases import is_factored
from tests.support.tolerances import FLOOR, errors, exact_options

STEPS = 3
BY_NAME = {c.name: c for c in CASES}
# The GPU backends. Every contract runs over both.
BACKENDS = ("cuda", "triton")
# What each GPU backend needs. If that is there and the backend is not, the test fails.
MADE_WITH = {
    "cuda": lambda: torch.version.hip is None and tool("nvcc") is not None,
    "triton": lambda: importlib.util.find_spec("triton") is not None,
}
# The relative error of a sum of 70,000 float64 numbers in another order: 70,000 * 2^-53.
FLOAT64 = 1e-11


def backend_on(name, device):
    """Backend `name`, or its replacement on a CPU. If it is not available, its tests are skipped,
    and one test says why."""
    if device.type != "cuda":
        return on_simulator() if name == "cuda" else interpreted()
    if reason := backends.BACKENDS[name].why_absent():
        pytest.skip(f"{name}: {reason}")
    return name


@functools.cache
def on_simulator():
    """The CUDA backend on the CUDA simulator."""
    from tests.support.cuda_on_ptx import simulated

    module, _ = simulated()
    backend = fusedstep.backends.cuda.CudaBackend("simcuda", lambda: module, ("cpu",))
    backends.BACKENDS[backend.name] = backend
    return backend.name


def interpreted():
    """Triton's interpreter, or else the reference, which only shows that the tests run."""
    return "triton" if "cpu" in fusedstep.backends.BACKENDS["triton"].devices() else "reference"


@functools.cache
def gradients(shapes, dtype, step, spoiler=None):
    """Gradients on the CPU, with `spoiler` in the middle of each. They are larger in float16, which
    does not hold the squares of small numbers."""
    params = make_params(list(shapes), dtype)
    set_grads(params, step, scale=1.0 if dtype == torch.float16 else 0.01)
    for param in params:
        if spoiler is not None and param.numel():
            param.grad.view(-1)[param.numel() // 2] = spoiler
    return [param.grad for param in params]


def give_gradients(params, dtype, step, spoiler=None, of_grad=plain):
    shapes = tuple(tuple(param.shape) for param in params)
    for param, grad in zip(params, gradients(shapes, dtype, step, spoiler), strict=True):
        param.grad = of_grad(grad.to(param.device, param.dtype))


def params_on(device, dtype, shapes=SHAPES, of_param=plain):
    """Parameters on `device`, which is one device or a list with one for each."""
    devices = device if isinstance(device, list) else [device] * len(shapes)
    return [
        torch.nn.Parameter(of_param(param.detach().to(own)))
        for param, own in zip(make_params(list(shapes), dtype), devices, strict=True)
    ]


def train(optimizer, params, dtype, steps=STEPS, spoiler=None, of_grad=plain, first=0):
    """Takes steps, and asserts that gradients and the addresses of parameters do not change."""
    for step in range(first, first + steps):
        give_gradients(params, dtype, step, spoiler, of_grad)
        before = [(p.data_ptr(), p.stride(), p.grad, p.grad.clone()) for p in params]
        optimizer.step()
        for param, (address, strides, grad, values) in zip(params, before, strict=True):
            assert (param.data_ptr(), param.stride()) == (address, strides)
            assert param.grad is grad and same_bits(grad, values)
    return numbers(optimizer, params)


def numbers(optimizer, params):
    """For each parameter: the parameter and its states by name, on the CPU."""
    return [
        {name: x.detach().cpu() for name, x in {"parameter": p, **states(optimizer, p)}.items()}
        for p in params
    ]


def by_reference(case, dtype, shapes, steps=STEPS, spoiler=None):
    return _by_reference(case.name, dtype, tuple(shapes), steps, spoiler)


@functools.cache
def _by_reference(name, dtype, shapes, steps, spoiler):
    case = BY_NAME[name]
    params = params_on(torch.device("cpu"), dtype, shapes)
    return train(case.make(params, backend="reference"), params, dtype, steps, spoiler)


@functools.cache
def in_float64(name, dtype, shapes, steps):
    """The exact result, computed from numbers of `dtype`."""
    case = BY_NAME[name]
    params = [torch.nn.Parameter(p.detach().double()) for p in make_params(list(shapes), dtype)]
    options = {**exact_options(case, dtype), **case.only_ours}
    return train(case.ours(params, **options, backend="reference"), params, dtype, steps)


def assert_same_numbers(found, expected):
    for index, (own, other) in enumerate(zip(found, expected, strict=True)):
        assert own.keys() == other.keys()
        for name, value in other.items():
            assert same_bits(own[name], value), (
                f"{name} of parameter {index} {tuple(own['parameter'].shape)} differs by "
                f"{(own[name].double() - value.double()).abs().max()}"
            )


def assert_agrees(case, dtype, found, shapes, steps=STEPS):
    """Compares with the reference, bit by bit or within the bound for factored rules."""
    expected = by_reference(case, dtype, shapes, steps)
    if not is_factored(case):
        assert_same_numbers(found, expected)
        return
    exact = in_float64(case.name, dtype, tuple(shapes), steps)
    for own, other, truth, shape in zip(found, expected, exact, shapes, strict=True):
        assert own.keys() == other.keys()
        for name, value in own.items():
            where = f"{name} of {shape} in {dtype}"
            wanted, right = other[name], truth[name].double()
            assert (value.dtype, value.shape) == (wanted.dtype, wanted.shape), where
            if name == "step" or not value.numel():
                assert torch.equal(value, wanted), where
                continue
            assert value.isfinite().all() and wanted.isfinite().all(), where
            largest = right.abs().max().item()
            if dtype == torch.float64:
                assert errors(value, right)[1] <= FLOAT64 * max(largest, 1.0), where
                continue
            # rms(p) is as exact as p, which was larger before the steps.
            info = torch.finfo(dtype if name == "RMS" else value.dtype)
            if name in ("parameter", "RMS"):
                largest = max(largest, 1.0)
            floor = FLOOR * info.eps * max(largest, info.smallest_normal)
            for mine, its in zip(errors(value, right), errors(wanted, right), strict=True):
                assert mine <= 2 * its + floor, f"{where}: {mine} against {its}, {floor=}"


@contextlib.contextmanager
def no_waiting():
    """Raises if torch makes the host wait for the device."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def work_of(step):
    """The device's work in one step, counted by name, from the profiler."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    on_device = torch.autograd.DeviceType.CUDA
    return collections.Counter(e.name for e in seen.events() if e.device_type == on_device)


def captured(work):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph
