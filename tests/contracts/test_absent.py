"""Gradients that come and go, as in a mixture of experts. The plan stays, and each step updates the
parameters that have a gradient."""

import pytest
import torch

from fusedstep import backends
from fusedstep.accumulate import GradientAccumulator
from tests.support.cases import CASES, assert_same, make_params, set_grads, states
from tests.support.rule_cases import once_a_rule

SMALL = [(7,), (33, 17), (3, 5, 7), (1025,), (4, 3, 3, 3)]
# The CPU gets large tensors too, which are cut into pieces. The reference has no work list.
SHAPES = {"cpu": [*SMALL, (300, 260), (70001,)], "reference": SMALL}
BACKENDS = [name for name in ("cpu", "reference") if not backends.BACKENDS[name].why_absent()]
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def some_gradients(params, step, of_grad=lambda grad: grad):
    """Gives two thirds of the parameters a gradient, others at each step."""
    set_grads(params, step)
    for index, param in enumerate(params):
        param.grad = None if (index + step) % 3 == 0 else of_grad(param.grad)


def transposed(grad):
    return grad.mT.contiguous().mT if grad.dim() > 1 else grad.repeat_interleave(2)[::2]


@each_backend
@pytest.mark.parametrize("of_grad", [lambda grad: grad, transposed], ids=["plain", "copied"])
@once_a_rule
def test_steps_are_those_of_a_new_plan(case, of_grad, backend):
    runs = []
    for anew in (False, True):
        params = make_params(SHAPES[backend])
        optimizer = case.make(params, backend=backend)
        plans = set()
        for step in range(5):
            some_gradients(params, step, of_grad)
            if anew:
                optimizer._plan = None
            before = [param.detach().clone() for param in params]
            optimizer.step()
            plans.add(id(optimizer._plan))
            for param, old in zip(params, before, strict=True):
                assert param.grad is not None or torch.equal(param, old)
            optimizer.kept = [*getattr(optimizer, "kept", []), optimizer._plan]  # keeps ids apart
        runs.append((optimizer, params, plans))
    (kept, kept_params, plans), (fresh, fresh_params, _) = runs
    assert_same(kept, kept_params, fresh, fresh_params)
    assert len(plans) == 2  # only a parameter that was never seen needs a new plan


@each_backend
def test_a_gradient_that_comes_back_in_another_way_makes_a_new_plan(backend):
    params = make_params(SHAPES[backend])
    case = CASES[0]
    optimizer = case.make(params, backend=backend)
    for step in range(3):
        set_grads(params, step)
        optimizer.step()
    plan, params[1].grad = optimizer._plan, None
    optimizer.step()
    assert optimizer._plan is plan
    params[1].grad = transposed(torch.ones_like(params[1]))
    optimizer.step()
    assert optimizer._plan is not plan


@each_backend
def test_sums_of_micro_batches_take_the_gradients_that_are_there(backend):
    params = make_params(SHAPES[backend])
    accumulator = GradientAccumulator(params, backend=backend)
    expected = [torch.zeros_like(param) for param in params]
    plans = []
    for step in range(6):
        some_gradients(params, step)
        for own, param in zip(expected, params, strict=True):
            if param.grad is not None:
                own += param.grad
        accumulator()
        plans.append(accumulator._plan)
    for own, found in zip(expected, accumulator.gradients, strict=True):
        assert torch.equal(own, found)
    assert len({id(plan) for plan in plans}) == 2


@each_backend
@once_a_rule
def test_no_gradient_at_all_is_no_step(case, backend):
    params = make_params(SHAPES[backend])
    optimizer = case.make(params, backend=backend)
    set_grads(params, 0)
    optimizer.step()
    before = [(p.detach().clone(), float(states(optimizer, p).get("step", 0))) for p in params]
    for param in params:
        param.grad = None
    for _ in range(2):
        optimizer.step()
    for param, (old, step) in zip(params, before, strict=True):
        assert torch.equal(param, old)
        assert float(states(optimizer, param).get("step", 0)) == step
