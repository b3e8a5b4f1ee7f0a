"""The cost of a step: memory, launches, calls and waits are counted and compared with a limit."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fusedstep.hf
import fusedstep.optim
from fusedstep.backends.cpu import CpuLauncher
from tests.support.calls import Calls
from tests.support.cases import CASES, each, make_params, set_grads
from tests.support.parameter_lists import LISTS, OPTIMIZERS, a_list, each_optimizer
from tests.support.rule_cases import once_a_kind
from tests.support.sweeps import sweep
from tests.support.versions import HAS_EXCHANGE

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("dtype", sweep([torch.bfloat16, torch.float32], [torch.bfloat16]), ids=str)
@pytest.mark.parametrize("shapes", LISTS)
@each_optimizer
def test_scratch_is_below_two_percent_of_the_parameters(name, shapes, dtype):
    params = a_list(LISTS[shapes], dtype)
    optimizer = OPTIMIZERS[name](params)
    optimizer.step()
    used, size = optimizer._plan.scratch_bytes(), sum(p.nbytes for p in params)
    assert used <= 0.02 * size, f"{used / size:.1%}"


PEAK = """
import resource, torch
from tests.support.parameter_lists import OPTIMIZERS, a_list
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
make = OPTIMIZERS[{name!r}]
make(a_list([(600, 600), (70000,)], torch.float32)).step()  # loads code
params = a_list([*15 * [(2048, 2048)], (2**22,)], torch.float32)
for param in params:
    param.data.fill_(1.0), param.grad.fill_(0.5)
optimizer = make(params)
before = peak()
optimizer.step()
first = peak()
optimizer.step()
states = sum(t.nbytes for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t))
print(before, first, peak(), states, sum(param.nbytes for param in params))
"""


def run_python(text):
    command = [sys.executable, "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    "name",
    sweep(OPTIMIZERS, ["hf-adafactor-momentum"]),
)
def test_a_step_of_64_million_elements_makes_no_large_temporary(name):
    """In a new process, the first step raises the peak by its states, the second not at all."""
    before, first, second, states, size = map(int, run_python(PEAK.format(name=name)).split())
    assert size >= 4 * 2**26
    assert first - before <= states + 0.03 * size, f"{(first - before - states) / size:.1%}"
    assert second - first <= 0.01 * size, f"{(second - first) / size:.1%}"
    assert first > size / 2  # otherwise the peak was not read


def calls_of_a_step(case, shapes, backend="cpu"):
    params = make_params(shapes)
    optimizer = case.make([{"params": params[::2]}, {"params": params[1::2]}], backend=backend)
    for step in range(3):
        set_grads(params, step)
        with Calls() as calls:
            optimizer.step()
    return calls.count


@once_a_kind
def test_calls_of_torch_do_not_grow_with_the_number_of_parameters(case):
    few, many = (calls_of_a_step(case, n * [(3,), (4, 5)]) for n in (5, 100))
    assert few == many
    assert sum(many.values()) < 40, many
    # The host reads two values only: the smallest and the largest counter, from host memory.
    assert many["aten._local_scalar_dense.default"] <= 2


def test_gradients_are_unscaled_in_as_many_calls_for_few_as_for_many():
    def calls_of(count):
        params = make_params(count * [(3,), (4, 5)])
        optimizer = fusedstep.optim.AdamW(params, fused=True)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(0.0)
        for step in range(2):
            set_grads(params, step)
            with Calls() as calls:
                optimizer.step()
        return calls.count

    assert calls_of(5) == calls_of(100)


def test_the_count_of_calls_sees_what_grows():
    few, many = (calls_of_a_step(CASES[0], n * [(3,)], "reference") for n in (5, 100))
    assert sum(many.values()) > 10 * sum(few.values())


@once_a_kind
def test_launches_do_not_grow_with_the_number_of_parameters(case, monkeypatch):
    launched, launch = [], CpuLauncher.launch
    monkeypatch.setattr(
        CpuLauncher, "launch", lambda *a: (launched.append(a[0].bucket.kind), launch(*a))
    )
    for n in (1, 10, 150):
        params = make_params(n * [(3,), (4, 5), (300, 260)] if n < 100 else n * [(3,), (4, 5)])
        optimizer = case.make(params)
        for step in range(2):
            set_grads(params, step)
            launched.clear()
            optimizer.step()
            assert len(launched) == (2 if "matrix" in launched else 1)


@once_a_kind
def test_a_step_leaves_gradients_and_addresses_alone(case):
    params = make_params()
    optimizer = case.make(params)
    for step in range(3):
        set_grads(params, step)
        grads = [(p.grad, p.grad.clone(), p.grad._version, p.grad.data_ptr()) for p in params]
        before = [(p.data_ptr(), p._version, p.detach().clone()) for p in params]
        optimizer.step()
        for param, (grad, copy, version, address) in zip(params, grads, strict=True):
            assert param.grad is grad
            assert (grad._version, grad.data_ptr()) == (version, address)
            assert torch.equal(grad, copy)
        for param, (address, version, old) in zip(params, before, strict=True):
            assert param.data_ptr() == address
            assert param._version > version  # autograd was notified of the write
            # Rprop leaves a number alone whose gradient has changed its sign.
            may_stay = not param.numel() or (step and case.ours is fusedstep.optim.Rprop)
            assert may_stay or not torch.equal(param, old)


def test_an_import_prints_nothing_and_brings_no_optional_package():
    text = "import sys, fusedstep, fusedstep.optim, fusedstep.hf\n"
    text += "assert not {'triton', 'transformers', 'matplotlib'} & set(sys.modules)"
    assert run_python(text) == ""


def calls_of_the_first_step(case, n):
    """The number of calls of Python and C functions."""
    params = make_params([(4,) if k % 2 else (2, 2) for k in range(n)])
    set_grads(params, 0)
    optimizer = case.make(params)
    count = 0

    def called(_, event, __):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(called)
    try:
        optimizer.step()
    finally:
        sys.setprofile(None)
    return count


# 100,000 parameters take two seconds. Where torch has no table for DLPack, C++ asks Python once
# about each tensor that has elements and at most five dimensions.
MOST_CALLS = 60 if HAS_EXCHANGE else 70


@each([case for case in CASES if case.name in ("adamw", "adafactor", "hf-adafactor", "old-adamw")])
def test_the_first_step_makes_few_calls_for_each_parameter(case):
    """The number for each parameter does not grow with their number."""
    calls_of_the_first_step(case, 2)  # imports and fills caches
    counts = [calls_of_the_first_step(case, n) for n in (100, 200, 400)]
    first, second = counts[1] - counts[0], counts[2] - counts[1]
    assert second <= 2.02 * first
    assert second / 200 <= MOST_CALLS, second / 200


def test_the_collector_rests_while_a_plan_is_made():
    """100,000 parameters need half a million objects, and none of them is garbage. Afterwards the
    collector is on again if it was, also after an error."""
    params = make_params([(4,)] * 2000)
    set_grads(params, 0)
    optimizer = fusedstep.optim.AdamW(params)
    gc.collect()
    before = gc.get_stats()[0]["collections"]
    optimizer.step()
    assert gc.get_stats()[0]["collections"] - before < 5
    assert gc.isenabled()
    params[7].grad = params[7].grad.to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert gc.isenabled()
    gc.disable()
    try:
        set_grads(params, 0)
        optimizer.step()
        assert not gc.isenabled()
    finally:
        gc.enable()
