"""torch.set_flush_denormal changes one thread only. In a step all threads flush as the calling
thread does."""

import pytest
import torch

from fusedstep import native
from tests.support.cases import CASES, DTYPES, assert_same, make_params, same_bits, set_grads
from tests.support.rule_cases import once_a_rule

SHAPES = [(2000,)] * 20 + [(300, 260), (64, 64), (70001,), (9000, 3, 3)]
DENORMAL = 1e-40


@pytest.fixture
def _restored():
    level, threads = native.module.active_level(), torch.get_num_threads()
    torch.set_num_threads(3)
    torch.ones(1 << 20).add_(1.0)  # starts the pool's threads before any mode changes
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)
    native.module.use_level(level)


def run(case, dtype, flush, threads):
    """Takes steps with numbers that are about as small as float32's denormals."""
    torch.set_num_threads(threads)
    params = make_params(SHAPES, dtype)
    for param in params:
        param.data.mul_(1e-38)
    optimizer = case.make(params, backend="cpu")
    for step in range(2):
        set_grads(params, step, scale=1e-38)  # not all of torch's threads would flush
        torch.set_flush_denormal(flush)
        try:
            optimizer.step()
        finally:
            torch.set_flush_denormal(False)
    return optimizer, params


@once_a_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("_restored")
def test_any_number_of_threads_flushes_alike(case, dtype):
    expected = run(case, dtype, True, 1)
    for threads in (2, 3, 3):
        assert_same(*run(case, dtype, True, threads), *expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("level", native.module.levels())
@pytest.mark.usefixtures("_restored")
def test_flushing_is_that_of_one_thread_at_every_level(level, dtype):
    native.module.use_level(level)
    for case in CASES[::5]:
        assert_same(*run(case, dtype, True, 3), *run(case, dtype, True, 1))


@pytest.mark.usefixtures("_restored")
def test_what_is_flushed_is_zero_and_only_while_it_is_asked_for():
    kept, zeros = (
        run(CASES[0], torch.float32, flush, 3)[0].state.values() for flush in (False, True)
    )
    smallest = torch.finfo(torch.float32).tiny
    for state in kept:
        m = state["exp_avg"].abs()
        assert ((m > 0) & (m < smallest)).any()
    for state in zeros:
        m = state["exp_avg"].abs()
        assert not ((m > 0) & (m < smallest)).any()


@pytest.mark.usefixtures("_restored")
def test_the_pool_is_left_as_it_was():
    run(CASES[0], torch.float32, True, 3)
    x = torch.full((1 << 20,), DENORMAL)
    assert same_bits(x.mul(1.0), x)
    torch.set_flush_denormal(True)
    params = make_params(SHAPES)
    set_grads(params, 0)
    CASES[0].make(params, backend="cpu").step()
    assert torch.tensor(DENORMAL) * 1.0 == 0.0  # the calling thread still flushes
