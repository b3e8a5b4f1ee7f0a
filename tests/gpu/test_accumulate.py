"""GradientAccumulator on a GPU, with both backends: the reference's bits, one launch, no wait."""

import pytest
import torch

from fusedstep.accumulate import GradientAccumulator
from tests.support.accumulating import ACCUMULATE
from tests.support.cases import DTYPES, SHAPES, same_bits
from tests.support.gpu_runs import (
    BACKENDS,
    assert_same_numbers,
    backend_on,
    captured,
    give_gradients,
    no_waiting,
    params_on,
    train,
    work_of,
)
from tests.support.layouts import LAYOUTS, plain
from tests.support.layouts import SHAPES as LAYOUT_SHAPES

pytestmark = pytest.mark.gpu
F32, BF16 = DTYPES[:2]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(params=BACKENDS)
def backend(request, device):
    return backend_on(request.param, device)


def summed(device, dtype, backend, shapes=SHAPES, of_param=plain, **more):
    params = params_on(device, dtype, shapes, of_param)
    return train(ACCUMULATE.make(params, backend=backend), params, dtype, **more)


def by_reference(dtype, shapes=SHAPES, **more):
    return summed(torch.device("cpu"), dtype, "reference", shapes, **more)


@each_dtype
def test_sums_on_the_device_have_the_bits_of_the_reference_on_the_cpu(dtype, backend, device):
    assert_same_numbers(summed(device, dtype, backend), by_reference(dtype))


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e-42, 1e30])
def test_strange_numbers_are_summed_as_on_the_cpu(value, backend, device):
    found = summed(device, F32, backend, spoiler=value)
    assert_same_numbers(found, by_reference(F32, spoiler=value))


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_any_layout_on_the_device_agrees_with_the_plain_one(layout, dtype, backend, device):
    expected = by_reference(dtype, LAYOUT_SHAPES)
    for of_param, of_grad in ((layout, plain), (plain, layout), (layout, layout)):
        found = summed(device, dtype, backend, LAYOUT_SHAPES, of_param, of_grad=of_grad)
        assert_same_numbers(found, expected)


@each_dtype
def test_sums_are_handed_over_on_the_device(dtype, backend, device):
    params = params_on(device, dtype)
    accumulator = GradientAccumulator(params, 0.3, backend=backend)
    for _ in range(2):
        for step in range(2):
            give_gradients(params, dtype, step)
            accumulator()
            assert all(param.grad is None for param in params)
        accumulator.hand_over()
        for param, own in zip(params, accumulator.gradients, strict=True):
            assert same_bits(param.grad, own.to(dtype))
            assert (param.grad is own) == (own.dtype == dtype)
        with pytest.raises(RuntimeError, match="reset"):
            accumulator()
        accumulator.reset()
        assert all(param.grad is None for param in params)
        assert not any(own.any() for own in accumulator.gradients)


def test_tensors_of_the_host_and_of_the_device_share_an_accumulator(gpu):
    devices = [place for _ in SHAPES for place in (torch.device("cpu"), gpu)]
    params = params_on(devices, F32, 2 * SHAPES)
    found = train(ACCUMULATE.make(params), params, F32)
    assert_same_numbers(found, by_reference(F32, 2 * SHAPES))


@pytest.fixture
def used(backend, gpu):
    """An accumulator of bfloat16 gradients that has a plan, and its parameters."""
    params = params_on(gpu, BF16)
    accumulator = GradientAccumulator(params, backend=backend)
    for step in range(2):
        give_gradients(params, BF16, step)
        accumulator()
    return accumulator, params


def test_nothing_waits_for_the_device(used):
    accumulator, params = used
    for step in range(2):
        give_gradients(params, BF16, step)
        with no_waiting():
            accumulator(0.25 + step)
            accumulator.hand_over()
            accumulator.reset()


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_a_call_on_the_device_is_one_kernel_for_few_tensors_as_for_many(dtype, backend, gpu):
    counts = []
    for copies in (3, 150):
        params = params_on(gpu, dtype, copies * [(3,), (40, 50), (16, 64)])
        accumulator = GradientAccumulator(params, backend=backend)
        for step in range(4):  # compiles kernels and warms up the profiler
            give_gradients(params, dtype, step)
            seen = work_of(accumulator)
        # Tables are copied again if gradients have moved.
        counts.append({name: n for name, n in seen.items() if not name.startswith("Memcpy")})
    assert sum(counts[0].values()) >= 1, "the profiler saw nothing on the device"
    assert counts[0] == counts[1]
    if backend == "cuda":
        assert sum(n for kernel, n in counts[1].items() if "fusedstep" in kernel) == 1, counts[1]


def test_a_call_in_a_capture_is_refused(used):
    accumulator, params = used
    give_gradients(params, BF16, 0)
    with pytest.raises(RuntimeError, match="captured in a graph"):
        captured(accumulator)
    accumulator()
