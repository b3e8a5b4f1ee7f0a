"""Between the stages of a factored step the host may add up sums over processes, for sharded
parameters. Here a fake all-reduce stands for the other processes."""

import itertools
import threading

import pytest
import torch

from fusedstep import backends
from fusedstep.plan.launcher import sums_layout
from tests.support.cases import DTYPES, assert_same, each, make_params, set_grads
from tests.support.exchange import FakeAllReduce
from tests.support.rule_cases import ELEMENTWISE, FACTORED
from tests.support.sweeps import sweep

BACKENDS = [name for name in ("cpu", "reference") if not backends.BACKENDS[name].why_absent()]
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def trained(case, dtype, backend, exchange, steps=3):
    params = make_params(dtype=dtype)
    optimizer = case.make(params, backend=backend)
    optimizer._exchange = exchange
    for step in range(steps):
        set_grads(params, step, scale=1.0 if dtype == torch.float16 else 0.01)
        optimizer.step()
    return optimizer, params


@pytest.mark.parametrize(
    ("backend", "dtype"),
    sweep(
        itertools.product(BACKENDS, DTYPES),
        [("reference", torch.float32), *itertools.product(["cpu"], DTYPES)],
    ),
    ids=str,
)
@each(FACTORED)
def test_stages_with_an_all_reduce_between_them_have_the_bits_of_one_call(case, dtype, backend):
    expected = trained(case, dtype, backend, None)
    all_reduce = FakeAllReduce()
    assert_same(*trained(case, dtype, backend, all_reduce), *expected)
    assert len(all_reduce.seen) == 2 * 3  # two in each step, whatever the number of tensors


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
    """Another process holds as much again, so the sums are twice as large."""
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
    (before,), (sum_u2,) = calls
    assert sum_u2.numel() == len(shapes)
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


class Averages:
    """The exchange of two optimizers in two threads, each with half of every tensor. It averages:
    the mean of means over equal halves is the mean over the whole."""

    def __init__(self):
        self.barrier = threading.Barrier(2, timeout=60)
        self.given = {}

    def __call__(self, sums):
        self.given[threading.get_ident()] = [own.clone() for own in sums]
        self.barrier.wait()
        totals = [sum(parts) / 2 for parts in zip(*self.given.values(), strict=True)]
        self.barrier.wait()
        for own, total in zip(sums, totals, strict=True):
            own.copy_(total)


def halves(params, grads):
    """The upper and the lower half of every parameter, each with its gradient."""
    for part in (0, 1):
        own = [torch.nn.Parameter(p.detach().chunk(2)[part].clone()) for p in params]
        for param, grad in zip(own, grads, strict=True):
            param.grad = grad.chunk(2)[part].clone()
        yield own


@each_backend
@each(FACTORED)
def test_two_processes_with_half_of_the_rows_make_the_step_of_one(case, backend):
    """The lower rows are much smaller, so a cap from one half alone would be wrong."""
    whole = make_params([(512, 64), (1024, 300), (8, 5), (300,), (140_002,)], torch.float64)
    set_grads(whole, 0)
    grads = [param.grad for param in whole]
    for grad in grads:
        grad[len(grad) // 2 :] *= 1e-3
    parts = list(halves(whole, grads))
    one = case.make(whole, backend=backend)
    one.step()
    average, optimizers = Averages(), [case.make(part, backend=backend) for part in parts]
    for optimizer in optimizers:
        optimizer._exchange = average
    threads = [threading.Thread(target=optimizer.step) for optimizer in optimizers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, param in enumerate(whole):
        joined = torch.cat([part[index].detach() for part in parts])
        torch.testing.assert_close(joined, param.detach(), rtol=1e-12, atol=1e-14)


@each([case for case in FACTORED if not case.options.get("beta1")])
@pytest.mark.parametrize("dtype", sweep(DTYPES, DTYPES[:2]), ids=str)
def test_backends_agree_on_what_an_exchange_changes(case, dtype):
    if "cpu" not in BACKENDS:
        pytest.skip("the C++ module is not built")

    def tripled(sums):
        for own in sums:
            own *= 3.0

    runs = [trained(case, dtype, backend, tripled, 2) for backend in BACKENDS]
    assert_same(*runs[0], *runs[1])
