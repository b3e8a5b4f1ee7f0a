"""Processes that hold parts of a tensor add up sums between the stages of a factored step. Here
fakes stand for the other processes; `tests/distributed` has real ones."""

import itertools

import pytest
import torch

from fusedstep import backends
from fusedstep.plan.exchange_layout import ExchangeError
from tests.support.cases import DTYPES, assert_same, each, make_params, set_grads
from tests.support.exchange import MESSAGES, ROLES, SHARES, FakeProcesses, check_parts, share
from tests.support.rule_cases import ELEMENTWISE, FACTORED, ONE_A_RULE
from tests.support.sweeps import sweep

BACKENDS = [name for name in ("cpu", "reference") if not backends.BACKENDS[name].why_absent()]
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_role = pytest.mark.parametrize("role", ROLES)
SMALL = [case for case in FACTORED if case.name in ("adafactor", "hf-adafactor")]


def trained(case, dtype, backend, processes=None, role="rows", steps=3, parts=1):
    params = make_params(dtype=dtype)
    optimizer = case.make(params, backend=backend)
    if processes is not None:
        share(optimizer, processes, role, parts)
    for step in range(steps):
        set_grads(params, step, scale=1.0 if dtype == torch.float16 else 0.01)
        optimizer.step()
    return optimizer, params


@pytest.mark.parametrize(
    ("backend", "dtype"),
    sweep(
        itertools.product(BACKENDS, DTYPES),
        [(backend, torch.float32) for backend in BACKENDS] + [("cpu", torch.bfloat16)],
    ),
    ids=str,
)
@each_role
@each(FACTORED)
def test_stages_with_an_exchange_between_them_have_the_bits_of_one_call(case, role, dtype, backend):
    expected = trained(case, dtype, backend)
    processes = FakeProcesses()
    found = trained(case, dtype, backend, processes, role)
    assert_same(*found, *expected)
    is_capped = found[0].is_capped
    assert len(processes.seen) == 3 * MESSAGES[role][not is_capped]


@each_backend
@each(sweep(ELEMENTWISE, ONE_A_RULE))
def test_a_rule_without_sums_exchanges_nothing(case, backend):
    processes = FakeProcesses()
    expected = trained(case, torch.float32, backend)
    assert_same(*trained(case, torch.float32, backend, processes), *expected)
    assert processes.seen == []


@each_backend
@each(SMALL)
def test_what_an_exchange_changes_is_what_the_rest_of_the_step_takes(case, backend):
    """Another process holds as much again, so there are twice as many rows."""
    shapes = [(300, 260), (33, 17), (2, 5, 7)]
    halves, whole = (
        make_params(own, torch.float64) for own in (shapes, [(600, 260), (66, 17), (2, 10, 7)])
    )
    optimizer, one = (case.make(params, backend=backend) for params in (halves, whole))
    share(optimizer, FakeProcesses(2), parts=2)
    set_grads(halves, 0)
    for half, both in zip(halves, whole, strict=True):
        both.data = torch.cat([half.data] * 2, -2)
        both.grad = torch.cat([half.grad] * 2, -2)
    optimizer.step()
    one.step()
    for half, both in zip(halves, whole, strict=True):
        rows = half.shape[-2]
        torch.testing.assert_close(half, both.narrow(-2, 0, rows), rtol=1e-12, atol=1e-14)
        for key, value in optimizer.state[half].items():
            if isinstance(value, torch.Tensor) and "col" in key:
                torch.testing.assert_close(value, one.state[both][key], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("backend", "shares"),
    sweep(
        itertools.product(BACKENDS, SHARES),
        [("cpu", "uneven"), ("cpu", "nothing"), ("reference", "uneven")],
    ),
)
@each_role
@each(FACTORED)
def test_two_processes_with_parts_of_each_tensor_make_the_steps_of_one(case, shares, role, backend):
    shapes = [(512, 64), (1024, 300), (8, 6), (1, 5), (5, 1), (2, 6, 4), (300,), (140_002,)]
    check_parts(case, backend, role, SHARES[shares], shapes)


@each([case for case in FACTORED if not case.options.get("beta1")])
@each_role
@pytest.mark.parametrize("dtype", sweep(DTYPES, [torch.bfloat16]), ids=str)
def test_backends_agree_on_what_an_exchange_changes(case, role, dtype):
    if "cpu" not in BACKENDS:
        pytest.skip("the C++ module is not built")
    runs = [
        trained(case, dtype, backend, FakeProcesses(3), role, steps=2, parts=3)
        for backend in BACKENDS
    ]
    assert_same(*runs[0], *runs[1])


class Lacking(FakeProcesses):
    """Two processes, of which the other one has no gradient of the first parameter."""

    def __init__(self):
        super().__init__(2)

    def add_up(self, numbers):
        own = numbers[0].item()
        super().add_up(numbers)
        numbers[0] = own
        return lambda: None

    def gather(self, own):
        return [own, own if isinstance(own, str) else (own[0], [0], own[2])]


@each_backend
@each(SMALL)
def test_a_gradient_that_another_process_lacks_is_an_error_and_changes_nothing(case, backend):
    params = make_params()
    optimizer = case.make(params, backend=backend)
    share(optimizer, FakeProcesses())
    set_grads(params, 0)
    optimizer.step()
    share(optimizer, Lacking())
    optimizer._plan = None
    before = [p.detach().clone() for p in params]
    states = [
        [v.clone() for v in s.values() if torch.is_tensor(v)] for s in optimizer.state.values()
    ]
    with pytest.raises(ExchangeError, match=r"parameter 1 of group 0 .* has no gradient on rank 1"):
        optimizer.step()
    assert all(map(torch.equal, before, params))
    for old, state in zip(states, optimizer.state.values(), strict=True):
        assert all(map(torch.equal, old, [v for v in state.values() if torch.is_tensor(v)]))
