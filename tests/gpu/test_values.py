"""On a GPU, both backends over the same tables as the CPU: values, layouts, mixed devices."""

import copy

import pytest
import torch

from fusedstep import backends
from tests.support.cases import DTYPES, SHAPES, each
from tests.support.gpu_runs import (
    BACKENDS,
    MADE_WITH,
    assert_agrees,
    assert_same_numbers,
    backend_on,
    by_reference,
    give_gradients,
    numbers,
    params_on,
    train,
)
from tests.support.layouts import LAYOUTS, every_second, misaligned, plain, sliced
from tests.support.layouts import SHAPES as LAYOUT_SHAPES
from tests.support.rule_cases import ELEMENTWISE, FACTORED

pytestmark = pytest.mark.gpu

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
ALL = ELEMENTWISE + FACTORED
BASIC = [case for case in ALL if case.name in ("adamw", "adafactor", "hf-adafactor-momentum")]
STRANGE = [float("inf"), float("-inf"), float("nan"), 1e-30, 1e30, 1e-42]


@pytest.fixture(params=BACKENDS)
def backend(request, device):
    return backend_on(request.param, device)


def trained(case, backend, device, dtype, shapes=SHAPES, of_param=plain, **more):
    params = params_on(device, dtype, shapes, of_param)
    return train(case.make(params, backend=backend), params, dtype, **more)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_is_there_if_what_makes_it_is(name):
    """Otherwise all its tests would be skipped without notice."""
    reason = backends.BACKENDS[name].why_absent()
    if reason and not MADE_WITH[name]():
        pytest.skip(f"{name}: {reason}")
    assert reason == ""


@each_dtype
@each(ELEMENTWISE)
def test_a_step_on_the_device_has_the_bits_of_the_reference_on_the_cpu(
    case, dtype, backend, device
):
    assert_agrees(case, dtype, trained(case, backend, device, dtype), SHAPES)


@each_dtype
@each(FACTORED)
def test_a_factored_step_on_the_device_is_as_exact_as_the_reference(case, dtype, backend, device):
    assert_agrees(case, dtype, trained(case, backend, device, dtype), SHAPES)


@pytest.mark.parametrize("value", STRANGE)
@each(ELEMENTWISE)
def test_strange_numbers_come_out_as_on_the_cpu(case, value, backend, device):
    found = trained(case, backend, device, torch.float32, spoiler=value)
    assert_same_numbers(found, by_reference(case, torch.float32, SHAPES, spoiler=value))


@pytest.mark.parametrize("value", STRANGE)
@each(FACTORED)
def test_strange_numbers_reach_the_same_elements_as_on_the_cpu(case, value, backend, device):
    found = trained(case, backend, device, torch.float32, spoiler=value)
    expected = by_reference(case, torch.float32, SHAPES, spoiler=value)
    for own, other in zip(found, expected, strict=True):
        for name, wanted in other.items():
            assert torch.equal(own[name].isfinite(), wanted.isfinite()), (name, wanted.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@each(BASIC)
def test_any_layout_on_the_device_agrees_with_the_plain_one_on_the_cpu(
    case, layout, dtype, backend, device
):
    """Parameter, gradient or both are misaligned, strided or channels_last."""
    for of_param, of_grad in ((layout, plain), (plain, layout), (layout, layout)):
        found = trained(
            case, backend, device, dtype, LAYOUT_SHAPES, of_param=of_param, of_grad=of_grad
        )
        assert_agrees(case, dtype, found, LAYOUT_SHAPES)


@each(BASIC)
def test_elements_between_those_of_a_parameter_on_the_device_are_not_touched(case, backend, device):
    for layout in (sliced, every_second, misaligned):
        params = params_on(device, torch.float32, LAYOUT_SHAPES, layout)
        train(case.make(params, backend=backend), params, torch.float32)
        for param in params:
            whole = torch.empty(0, device=device).set_(param.untyped_storage())
            outside = torch.ones_like(whole, dtype=torch.bool)
            outside.as_strided(param.shape, param.stride(), param.storage_offset()).fill_(False)
            assert (whole[outside] == 7.0).all()


@each(BASIC)
def test_an_expanded_gradient_on_the_device_equals_its_copy(case, backend, device):
    shapes = ((7,), (33, 17), (3, 5, 7))
    runs = []
    for expand in (True, False):
        params = params_on(device, torch.float32, shapes)
        optimizer = case.make(params, backend=backend)
        for _ in range(2):
            for param in params:
                grad = torch.tensor(0.25, device=device).expand(param.shape)
                param.grad = grad if expand else grad.contiguous()
            optimizer.step()
        runs.append(numbers(optimizer, params))
    assert_same_numbers(*runs)


@each(ALL)
def test_a_list_of_nothing_but_empty_tensors_is_stepped(case, backend, device):
    shapes = ((0,), (5, 0, 3))
    assert_agrees(
        case, torch.float32, trained(case, backend, device, torch.float32, shapes), shapes
    )


@each(ALL)
def test_tensors_of_the_host_and_of_all_gpus_share_a_list(case, backend, device, monkeypatch):
    known = {name: backends.BACKENDS[name] for name in ("cpu", backend, "reference")}
    monkeypatch.setattr(backends, "BACKENDS", known)
    places = [torch.device("cpu"), device]
    if device.type == "cuda":
        others = range(1, torch.cuda.device_count())
        places = [torch.device("cpu"), *(torch.device("cuda", k) for k in (0, *others))]
    shapes = tuple(shape for shape in SHAPES for _ in places)
    devices = [place for _ in SHAPES for place in places]
    params = params_on(devices, torch.float32, shapes)
    optimizer = case.make(params)
    assert_agrees(case, torch.float32, train(optimizer, params, torch.float32), shapes)
    chosen = {
        launcher.bucket.device: launcher.backend.name for launcher in optimizer._plan.launchers
    }
    for place, name in chosen.items():
        assert name == backend or place.type == "cpu"


def test_a_tensor_of_a_gpu_gets_the_first_backend_that_is_there(gpu):
    param = torch.nn.Parameter(torch.ones(3, device=gpu))
    param.grad = torch.ones_like(param)
    optimizer = BASIC[0].make([param])
    optimizer.step()
    there = [name for name in BACKENDS if not backends.BACKENDS[name].why_absent()]
    assert optimizer._plan.launchers[0].backend.name == there[0]


def test_a_second_gpu_is_used_while_the_first_is_current(backend, gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    for case in BASIC:
        with torch.cuda.device(0):
            found = trained(case, backend, torch.device("cuda", 1), torch.float32)
        assert_agrees(case, torch.float32, found, SHAPES)


def any_bits(count, seed):
    """Numbers from random bits: any size, denormal, infinite, nan."""
    noise = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**31), 2**31, (count,), generator=noise, dtype=torch.int32).view(
        torch.float32
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each(ELEMENTWISE)
def test_both_backends_make_the_same_bits_of_any_bits(case, dtype, device):
    count = (1 << 20) + 5 if device.type == "cuda" else 5001
    runs = []
    for name in BACKENDS:
        params = [torch.nn.Parameter(any_bits(count, 0).to(dtype).to(device))]
        optimizer = case.make(params, backend=backend_on(name, device))
        for step in range(2):
            params[0].grad = any_bits(count, 1 + step).to(dtype).to(device)
            optimizer.step()
        runs.append(numbers(optimizer, params))
    assert_same_numbers(*runs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each(ALL)
def test_a_resumed_run_on_the_device_equals_the_one_that_went_on(case, dtype, backend, device):
    params = params_on(device, dtype)
    optimizer = case.make(params, backend=backend)
    train(optimizer, params, dtype)
    twins = [torch.nn.Parameter(param.detach().clone()) for param in params]
    resumed = case.make(twins, backend=backend)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_same_numbers(
        train(resumed, twins, dtype, first=3), train(optimizer, params, dtype, first=3)
    )


# Every kind of work, in several units, where results could depend on the order of programs.
LARGE = ((2048, 2048), (1000, 5001), (300, 9000), (4, 700, 300), (20000, 3, 3), (300_000,), (65,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each(ALL)
def test_runs_on_the_device_repeat_bit_for_bit(case, dtype, backend, device):
    shapes = LARGE if device.type == "cuda" else LARGE[-2:]  # the interpreter is slow
    expected = trained(case, backend, device, dtype, shapes)
    for _ in range(4):
        assert_same_numbers(trained(case, backend, device, dtype, shapes), expected)


@each(BASIC)
def test_a_tensor_gets_the_same_bits_alone_and_in_a_list(case, backend, device):
    expected = trained(case, backend, device, torch.float32)
    for index, shape in enumerate(SHAPES):
        params = params_on(device, torch.float32)
        alone = params[index : index + 1]
        optimizer = case.make(alone, backend=backend)
        for step in range(3):
            give_gradients(params, torch.float32, step)
            optimizer.step()
        assert_same_numbers(numbers(optimizer, alone), expected[index : index + 1])
        assert tuple(alone[0].shape) == shape
