"""Between the phases of a factored step the host may add up sums over processes: the seam for
sharded parameters. Here a fake all-reduce stands in for those processes."""

import pytest
import torch

from fusedstep import backends
from fusedstep.plan.launcher import sums_layout
from tests.support.cases import CASES, DTYPES, assert_same, each, make_params, set_grads
from tests.support.problems import is_factored

FACTORED = [case for case in CASES if is_factored(case)]
ELEMENTWISE = [case for case in CASES if not is_factored(case)]
BACKENDS = [name for name in ("cpu", "reference") if not backends.BACKENDS[name].why_absent()]
each_backend = pytest.mark.parametrize("backend", BACKENDS)


class FakeAllReduce:
    """Of `processes` that all hold the same: their sum is so many times what is here, and every
    process takes its part of it. Powers of two leave all bits as they are."""

    def __init__(self, processes=2):
        self.processes = processes
        self.seen = []  # of each call, the sums' shapes

    def __call__(self, sums):
        self.seen.append([tuple(own.shape) for own in sums])
        for own in sums:
            assert own.dtype == torch.float64
            total = own * self.processes
            own.copy_(total / self.processes)


def trained(case, dtype, backend, exchange, steps=3):
    params = make_params(dtype=dtype)
    optimizer = case.make(params, backend=backend)
    optimizer._exchange = exchange
    for step in range(steps):
        set_grads(params, step, scale=1.0 if dtype == torch.float16 else 0.01)
        optimizer.step()
    return optimizer, params


@each_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each(FACTORED)
def test_phases_with_an_all_reduce_between_them_have_the_bits_of_one_call(case, dtype, backend):
    expected = trained(case, dtype, backend, None)
    all_reduce = FakeAllReduce()
    assert_same(*trained(case, dtype, backend, all_reduce), *expected)
    assert len(all_reduce.seen) == 2 * 3  # whatever the number of tensors


@each_backend
@each(ELEMENTWISE)
def test_a_rule_without_sums_exchanges_nothing(case, backend):
    all_reduce = FakeAllReduce()
    expected = trained(case, torch.float32, backend, None)
    assert_same(*trained(case, torch.float32, backend, all_reduce), *expected)
    assert all(shapes == [] for shapes in all_reduce.seen)


@each_backend
@each([case for case in FACTORED if case.name in ("adafactor", "hf-adafactor")])
def test_what_an_exchange_changes_is_what_the_rest_of_the_step_takes(case, backend):
    """A process that holds as much again: sums are twice as large."""
    shapes = [(300, 260), (33, 17), (2, 5, 7)]
    params = make_params(shapes)
    optimizer = case.make(params, backend=backend)
    calls = []

    def doubled(sums):
        calls.append([own.clone() for own in sums])
        for own in sums:
            own *= 2.0

    optimizer._exchange = doubled
    set_grads(params, 0)
    optimizer.step()
    (before,), (energies,) = calls
    assert energies.numel() == len(shapes)
    (launcher,) = optimizer._plan.launchers
    starts = sums_layout(launcher.bucket)
    assert before.numel() == starts[-1]
    key = "col_var" if "col_var" in optimizer.state[params[0]] else "exp_avg_sq_col"
    eps = 1e-30 if key == "exp_avg_sq_col" else 0.0
    for param, start, end in zip(params, starts[:-1], starts[1:], strict=True):
        rows, cols = param.shape[-2:]
        own = before[start : end - 1].reshape(-1, 2 * cols + 1)
        s = param.grad.double().square().sum(-2).reshape(-1, cols)
        assert torch.allclose(own[:, :cols], s, rtol=1e-5)
        found = optimizer.state[param][key].double().reshape(-1, cols)
        assert torch.allclose(found, 2 * s / rows + eps, rtol=1e-5)  # the first step has beta2 = 0
