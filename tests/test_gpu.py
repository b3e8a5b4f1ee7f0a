"""On a GPU: the same tables as on the CPU. Values, layouts, mixed devices, sizes beyond 32 bits."""

import copy

import pytest
import torch

import fusedstep.hf
import fusedstep.optim
from cases import DTYPES, SHAPES, each, same_bits
from gpu_runs import (
    ELEMENTWISE,
    FACTORED,
    WAVES,
    assert_agrees,
    assert_same_numbers,
    backend_of,
    by_reference,
    give_gradients,
    numbers,
    params_on,
    train,
)
from test_layouts import LAYOUTS, every_second, misaligned, plain, sliced
from test_layouts import SHAPES as LAYOUT_SHAPES

pytestmark = pytest.mark.gpu

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
ALL = ELEMENTWISE + FACTORED
BASIC = [case for case in ALL if case.name in ("adamw", "adafactor", "hf-adafactor-momentum")]
STRANGE = [float("inf"), float("-inf"), float("nan"), 1e-30, 1e30, 1e-42]


@pytest.fixture(params=["0", "1"], ids=["phases", "waves"])
def order(request, monkeypatch):
    """Of the work on matrices; elementwise rules have but one."""
    monkeypatch.setenv(WAVES, request.param)


def trained(case, device, dtype, shapes=SHAPES, of_param=plain, **more):
    params = params_on(device, dtype, shapes, of_param)
    return train(case.make(params, backend=backend_of(device)), params, dtype, **more)


@each_dtype
@each(ELEMENTWISE)
def test_a_step_on_the_device_has_the_bits_of_the_reference_on_the_cpu(case, dtype, device):
    assert_agrees(case, dtype, trained(case, device, dtype), SHAPES)


@each_dtype
@pytest.mark.usefixtures("order")
@each(FACTORED)
def test_a_factored_step_on_the_device_is_as_exact_as_the_reference(case, dtype, device):
    assert_agrees(case, dtype, trained(case, device, dtype), SHAPES)


@pytest.mark.parametrize("value", STRANGE)
@each(ELEMENTWISE)
def test_strange_numbers_come_out_as_on_the_cpu(case, value, device):
    found = trained(case, device, torch.float32, spoiler=value)
    assert_same_numbers(found, by_reference(case, torch.float32, SHAPES, spoiler=value))


@pytest.mark.parametrize("value", STRANGE)
@pytest.mark.usefixtures("order")
@each(FACTORED)
def test_strange_numbers_reach_the_same_elements_as_on_the_cpu(case, value, device):
    found = trained(case, device, torch.float32, spoiler=value)
    expected = by_reference(case, torch.float32, SHAPES, spoiler=value)
    for own, other in zip(found, expected, strict=True):
        for name, wanted in other.items():
            assert torch.equal(own[name].isfinite(), wanted.isfinite()), (name, wanted.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@each(BASIC)
def test_any_layout_on_the_device_agrees_with_the_plain_one_on_the_cpu(case, layout, dtype, device):
    """Misaligned, strided, channels_last: of the parameter, the gradient, and both."""
    for of_param, of_grad in ((layout, plain), (plain, layout), (layout, layout)):
        found = trained(case, device, dtype, LAYOUT_SHAPES, of_param=of_param, of_grad=of_grad)
        assert_agrees(case, dtype, found, LAYOUT_SHAPES)


@each(BASIC)
def test_elements_between_those_of_a_parameter_on_the_device_are_not_touched(case, device):
    for layout in (sliced, every_second, misaligned):
        params = params_on(device, torch.float32, LAYOUT_SHAPES, layout)
        train(case.make(params, backend=backend_of(device)), params, torch.float32)
        for param in params:
            whole = torch.empty(0, device=device).set_(param.untyped_storage())
            outside = torch.ones_like(whole, dtype=torch.bool)
            outside.as_strided(param.shape, param.stride(), param.storage_offset()).fill_(False)
            assert (whole[outside] == 7.0).all()


@each(BASIC)
def test_an_expanded_gradient_on_the_device_equals_its_copy(case, device):
    shapes = ((7,), (33, 17), (3, 5, 7))
    runs = []
    for expand in (True, False):
        params = params_on(device, torch.float32, shapes)
        optimizer = case.make(params, backend=backend_of(device))
        for _ in range(2):
            for param in params:
                grad = torch.tensor(0.25, device=device).expand(param.shape)
                param.grad = grad if expand else grad.contiguous()
            optimizer.step()
        runs.append(numbers(optimizer, params))
    assert_same_numbers(*runs)


@each(ALL)
def test_a_list_of_nothing_but_empty_tensors_is_stepped(case, device):
    shapes = ((0,), (5, 0, 3))
    assert_agrees(case, torch.float32, trained(case, device, torch.float32, shapes), shapes)


@each(ALL)
def test_tensors_of_the_host_and_of_all_gpus_share_a_list(case, device):
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
        bucket.device: launcher.name
        for bucket, launcher in zip(optimizer._plan.buckets, optimizer._plan.launchers, strict=True)
    }
    for place, name in chosen.items():
        assert name == "triton" or place.type == "cpu"


def test_a_second_gpu_is_used_while_the_first_is_current(gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    for case in BASIC:
        with torch.cuda.device(0):
            found = trained(case, torch.device("cuda", 1), torch.float32)
        assert_agrees(case, torch.float32, found, SHAPES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each(ALL)
def test_a_resumed_run_on_the_device_equals_the_one_that_went_on(case, dtype, device):
    params = params_on(device, dtype)
    optimizer = case.make(params, backend=backend_of(device))
    train(optimizer, params, dtype)
    twins = [torch.nn.Parameter(param.detach().clone()) for param in params]
    resumed = case.make(twins, backend=backend_of(device))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_same_numbers(
        train(resumed, twins, dtype, first=3), train(optimizer, params, dtype, first=3)
    )


# Of every kind of work, in several units: what could depend on which program comes first.
LARGE = ((2048, 2048), (1000, 5001), (300, 9000), (4, 700, 300), (20000, 3, 3), (300_000,), (65,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("order")
@each(ALL)
def test_runs_on_the_device_repeat_bit_for_bit(case, dtype, device):
    shapes = LARGE if device.type == "cuda" else LARGE[-2:]  # an interpreter has no day
    expected = trained(case, device, dtype, shapes)
    for _ in range(4):
        assert_same_numbers(trained(case, device, dtype, shapes), expected)


@each(BASIC)
def test_a_tensor_gets_the_same_bits_alone_and_in_a_list(case, device):
    expected = trained(case, device, torch.float32)
    for index, shape in enumerate(SHAPES):
        params = params_on(device, torch.float32)
        alone = params[index : index + 1]
        optimizer = case.make(alone, backend=backend_of(device))
        for step in range(3):
            give_gradients(params, torch.float32, step)
            optimizer.step()
        assert_same_numbers(numbers(optimizer, alone), expected[index : index + 1])
        assert tuple(alone[0].shape) == shape


# Beyond 2^31 elements.


def enough_memory(needed):
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of free GPU memory")


@pytest.mark.slow
def test_more_elements_than_32_bits_count_are_stepped_by_adamw(gpu):
    """Places at the front, at 2^31 and at the end equal lists of their own."""
    enough_memory(40 << 30)
    count = 2**31 + 5001
    generator = torch.Generator(gpu).manual_seed(0)

    def noise():
        return torch.randn(count, generator=generator, device=gpu, dtype=torch.bfloat16)

    starts = (0, 2**30 - 2048, 2**31 - 2048, count - 4096)
    param, grad = torch.nn.Parameter(noise()), noise()
    parts = [torch.nn.Parameter(param.detach()[k : k + 4096].clone()) for k in starts]
    param.grad = grad
    for part, k in zip(parts, starts, strict=True):
        part.grad = grad[k : k + 4096].clone()
    whole = fusedstep.optim.AdamW([param], lr=0.05, weight_decay=0.1, backend="triton")
    apart = fusedstep.optim.AdamW(parts, lr=0.05, weight_decay=0.1, backend="triton")
    for _ in range(2):
        whole.step()
        apart.step()
    for part, k in zip(parts, starts, strict=True):
        assert same_bits(param.detach()[k : k + 4096], part.detach())
        for key in ("exp_avg", "exp_avg_sq"):
            assert same_bits(whole.state[param][key][k : k + 4096], apart.state[part][key])


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2**31 + 5001,), (65_537, 32_771), (3, 26_755, 26_755)], ids=str)
def test_more_elements_than_32_bits_count_are_stepped_by_adafactor(shape, gpu):
    """All elements are equal before, so they are after: as equal as those of a small tensor."""
    enough_memory(40 << 30)
    runs = []
    for own in (shape, tuple(min(size, 64) for size in shape)):
        param = torch.nn.Parameter(torch.full(own, 1.5, dtype=torch.bfloat16, device=gpu))
        param.grad = torch.full_like(param, 0.01)
        optimizer = fusedstep.hf.Adafactor([param], lr=0.25, relative_step=False, backend="triton")
        for _ in range(2):
            optimizer.step()
        assert param.min() == param.max()
        for value in optimizer.state[param].values():
            if torch.is_tensor(value):
                # Sums of equal squares: of so many roundings few are left, as sums are in float64.
                torch.testing.assert_close(value.min(), value.max(), rtol=1e-5, atol=0.0)
        runs.append((param.detach().flatten()[0].float(), param.grad.flatten()[0]))
    (large, grad), (small, _) = runs
    assert grad == torch.tensor(0.01, dtype=torch.bfloat16, device=gpu)
    torch.testing.assert_close(large, small, rtol=2.0**-7, atol=0.0)  # one ulp of bfloat16
    assert large < 1.25
