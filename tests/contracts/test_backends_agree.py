"""Every backend computes the same bits as the reference, no matter how the work is cut."""

import pytest
import torch

from fusedstep import backends, native
from tests.support.cases import (
    CASES,
    DTYPES,
    NUMBERS,
    SHAPES,
    assert_same,
    each,
    make_params,
    set_grads,
)
from tests.support.rule_cases import once_a_rule
from tests.support.sweeps import sweep

OTHERS = [name for name, own in backends.BACKENDS.items() if "cpu" in own.devices()]
OTHERS.remove("reference")


def run(case, backend, dtype, steps=3, scale=0.01, prepare=None):
    params = make_params(dtype=dtype)
    optimizer = case.make(params, backend=backend)
    for step in range(steps):
        set_grads(params, step, scale)
        if prepare:
            prepare(params, step)
        optimizer.step()
    return optimizer, params


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", OTHERS)
@each(CASES)
def test_backend_equals_reference(case, backend, dtype):
    assert_same(*run(case, backend, dtype), *run(case, "reference", dtype))


@pytest.mark.parametrize(
    "value",
    sweep([*map(float, ["inf", "-inf", "nan"]), 1e-30, 1e30, 1e-42], [float("inf"), 1e-42]),
)
@each(CASES)
def test_backend_equals_reference_on_strange_numbers(case, value):
    def strange(params, step):
        for param in params:
            if param.numel():
                param.grad.view(-1)[param.numel() // 2] = value

    ours = run(case, "cpu", torch.float32, prepare=strange)
    assert_same(*ours, *run(case, "reference", torch.float32, prepare=strange))


@pytest.mark.parametrize("every", sweep([1, 2], [2]))
@once_a_rule
def test_mixed_dtypes_equal_reference(case, every):
    """One list has parameters of every dtype, in all shapes or every second one. Some states have
    another dtype than the parameter."""

    def mixed(backend):
        params = [
            p
            for k, dtype in enumerate(DTYPES)
            for p in make_params(SHAPES[k % every :: every], dtype, k)
        ]
        optimizer = case.make(params, backend=backend)
        for step in range(3):
            set_grads(params, step)
            optimizer.step()
            for index, param in enumerate(params):
                for key, value in optimizer.state[param].items():
                    if key not in NUMBERS and step == 0:
                        optimizer.state[param][key] = value.to(DTYPES[index % len(DTYPES)])
        return optimizer, params

    assert_same(*mixed("cpu"), *mixed("reference"))


@pytest.fixture
def _restore():
    level, threads = native.module.active_level(), torch.get_num_threads()
    yield
    native.module.use_level(level)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("level", native.module.levels())
@pytest.mark.usefixtures("_restore")
@once_a_rule
def test_every_instruction_set_computes_the_same(case, level):
    expected = run(case, "cpu", torch.bfloat16)
    native.module.use_level(level)
    assert_same(*run(case, "cpu", torch.bfloat16), *expected)


@pytest.mark.parametrize("threads", sweep([1, 2, 5], [1, 5]))
@pytest.mark.usefixtures("_restore")
@once_a_rule
def test_every_number_of_threads_computes_the_same(case, threads):
    torch.set_num_threads(3)
    expected = run(case, "cpu", torch.float32)
    torch.set_num_threads(threads)
    assert_same(*run(case, "cpu", torch.float32), *expected)
