"""The cost of a call of GradientAccumulator: launches, calls of torch, plans and memory are
counted."""

import weakref

import pytest
import torch

import fusedstep.plan.plan
from fusedstep.accumulate import GradientAccumulator
from fusedstep.backends.cpu import CpuLauncher
from fusedstep.plan.watch import PythonWatch
from tests.support.accumulating import of_dtype, run
from tests.support.calls import Calls
from tests.support.cases import DTYPES, make_params, set_grads
from tests.support.garbage import assert_freed


@pytest.mark.parametrize("watch", [None, PythonWatch])
def test_no_plan_is_made_anew_while_only_gradients_move(watch, monkeypatch):
    if watch:
        monkeypatch.setattr(fusedstep.plan.plan, "watch", watch)
    params, calls = of_dtype(torch.float32)
    accumulator = run(params, calls[:1])
    plan, addresses, kept = accumulator._plan, _addresses(accumulator), []
    for weight, grads in 2 * calls:
        kept.append([grad.clone() for grad in grads])  # so that no address comes back
        for param, grad in zip(params, kept[-1], strict=True):
            param.grad = grad
        accumulator(weight)
        accumulator.hand_over()
        accumulator.reset()
        assert accumulator._plan is plan
        assert _addresses(accumulator) == addresses


def _addresses(accumulator):
    return [own.data_ptr() for own in accumulator.gradients]


def test_a_call_is_one_launch_for_each_pair_of_dtypes_and_has_no_scratch(monkeypatch):
    launched, launch = [], CpuLauncher.launch
    monkeypatch.setattr(CpuLauncher, "launch", lambda *a: (launched.append(a[0]), launch(*a)))
    for dtypes in (DTYPES[:1], DTYPES[:2], DTYPES):
        params = [p for dtype in dtypes for p in make_params(dtype=dtype)]
        accumulator = GradientAccumulator(params)
        for call in range(2):
            set_grads(params, call)
            launched.clear()
            accumulator()
            assert len(launched) == len(dtypes)
        assert accumulator._plan.scratch_bytes() == 0


def test_calls_of_torch_do_not_grow_with_the_number_of_parameters():
    def calls_of(count):
        params = make_params(count * [(3,), (4, 5)])
        accumulator = GradientAccumulator(params)
        for step in range(3):
            set_grads(params, step)
            with Calls() as calls:
                accumulator()
        return calls.count

    few, many = calls_of(5), calls_of(100)
    assert few == many
    assert sum(many.values()) < 5, many
    assert "aten._local_scalar_dense.default" not in many


def test_a_call_frees_the_gradients_and_writes_nothing_but_its_sums():
    params, _ = of_dtype(torch.float32)
    accumulator = GradientAccumulator(params)
    set_grads(params, 0)
    accumulator()
    versions = [own._version for own in accumulator.gradients]
    set_grads(params, 1)
    grads, values = [weakref.ref(p.grad) for p in params], [p.detach().clone() for p in params]
    before = [p._version for p in params]
    accumulator()
    assert all(param.grad is None for param in params)
    assert all(grad() is None for grad in grads)
    assert all(map(torch.equal, params, values))
    assert [p._version for p in params] == before
    for own, version in zip(accumulator.gradients, versions, strict=True):
        assert own._version > version  # autograd was notified of the write
        assert not own.requires_grad


def test_it_is_freed_without_the_garbage_collector():
    def make():
        params, calls = of_dtype(torch.bfloat16)
        accumulator = run(params, calls)
        accumulator.hand_over()
        return accumulator, params

    assert_freed(make)
