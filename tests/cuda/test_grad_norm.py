"""The norm of the gradients by the CUDA kernel: on the simulator, and as nvcc's PTX."""

import pytest
import torch

from tests.support.cases import DTYPES, make_params, set_grads
from tests.support.cuda_on_ptx import on_ptx, on_simulator
from tests.support.norms import check_absent_and_strange, check_norms, optimizer_of
from tests.support.sweeps import sweep

pytest_plugins = ["tests.ptxrun.needs_nvcc"]


@pytest.mark.parametrize("rule", ["adamw", "adafactor"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_are_those_of_float64(dtype, rule):
    with on_simulator():
        check_norms("simcuda", dtype, rule=rule)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_squares_that_float32_cannot_hold_are_no_harm(dtype):
    with on_simulator():
        check_norms("simcuda", dtype, [(7,), (33, 17)], (1e-25, 1e25, 1e-10, 1e10))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_may_lie_at_any_address(dtype):
    with on_simulator():
        check_norms("simcuda", dtype, [(7,), (33000,)], offset=1)


def test_absent_infinite_and_nan_gradients():
    with on_simulator():
        check_absent_and_strange("simcuda")


def one_norm(seed=None):
    params = make_params([(70000,), (33, 17), *50 * [(3,)]])
    set_grads(params, 0, 1.0)
    with on_simulator() as settings:
        if seed is not None:
            settings.seed(seed)
        optimizer = optimizer_of(params, "simcuda")
        optimizer.step()
    return optimizer.grad_norm.item()


def test_the_order_of_blocks_changes_no_bit():
    assert len({one_norm(seed) for seed in (None, 1, 2)}) == 1


@pytest.mark.usefixtures("nvcc")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ptx_has_the_bits_of_the_simulator(dtype):
    found = []
    for where in (on_ptx, on_simulator):
        with where() as launches:
            found.append(check_norms("simcuda", dtype, [(), (7,), (33, 17), (32769,)]))
            if where is on_ptx:
                counted = launches.of_kernel
    assert found[0] == found[1]
    (name,) = (name for name in counted if name.startswith("gradient_squares"))
    assert not counted[name]["approximate"] and not counted[name]["fusable"]
    assert not counted[name]["fma"]


@pytest.mark.usefixtures("nvcc")
@pytest.mark.parametrize("arch", sweep([80, 90, 100], [90]))
def test_ptx_reads_nothing_else(arch):
    with on_ptx(arch):
        for offset in (0, 1):
            check_norms("simcuda", torch.bfloat16, [(7,), (4100,)], offset=offset)
