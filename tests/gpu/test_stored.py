"""Low-precision storage on a GPU, with both backends: the bits of the reference on the CPU, or
numbers as near as sums in another order are."""

import pytest
import torch

from tests.support.cases import make_params, set_grads
from tests.support.gpu_runs import BACKENDS, backend_on
from tests.support.rule_cases import is_factored
from tests.support.stored_cases import PAIRS, USUAL_PAIRS, assert_same_bits, of_dtype
from tests.support.stored_problems import assert_near_as_stored, strange_gradients
from tests.support.sweeps import sweep

pytestmark = pytest.mark.gpu

STEPS = 3
# For the interpreter and the simulator, which are slow.
FEW = [(7,), (33, 17), (40, 128)]
MANY = [(7,), (70001,), (33, 17), (600, 128), (3, 16, 128), (300, 1024), (2000, 3, 3), (9, 9088)]


@pytest.fixture(params=BACKENDS)
def backend(request, device):
    return backend_on(request.param, device)


def start(shapes, dtype):
    return of_dtype(make_params(shapes), dtype)


def trained(case, stored, backend, device, shapes):
    """Takes steps on the device. Then everything is moved to the CPU."""
    params = [torch.nn.Parameter(p.detach().to(device)) for p in start(shapes, stored.dtype)]
    optimizer = case.make(params, backend=backend, **stored.options)
    for step in range(STEPS):
        twins = start(shapes, stored.dtype)
        if is_factored(case):
            set_grads(twins, step)
        else:
            strange_gradients(None, twins, step)
        for param, twin in zip(params, twins, strict=True):
            param.grad = twin.grad.to(device)
        optimizer.step()
    for param in params:
        state = optimizer.state[param]
        state.update({key: x.cpu() for key, x in state.items() if torch.is_tensor(x)})
        param.grad, param.data = None, param.data.cpu()
    return optimizer, params


@pytest.mark.parametrize(("case", "stored"), sweep(PAIRS, USUAL_PAIRS), ids=str)
def test_a_step_on_the_device_is_the_reference_s_on_the_cpu(case, stored, backend, device):
    shapes = MANY if device.type == "cuda" else FEW
    found = trained(case, stored, backend, device, shapes)
    reference = trained(case, stored, "reference", torch.device("cpu"), shapes)
    if is_factored(case):
        assert_near_as_stored(found, reference, STEPS)
    else:
        assert_same_bits(*found, *reference)


@pytest.mark.parametrize(("case", "stored"), sweep(PAIRS, USUAL_PAIRS), ids=str)
def test_runs_on_the_device_repeat_bit_for_bit(case, stored, backend, device):
    shapes = MANY if device.type == "cuda" else FEW
    expected = trained(case, stored, backend, device, shapes)
    for _ in range(2):
        assert_same_bits(*trained(case, stored, backend, device, shapes), *expected)
