"""On a GPU: more elements than 32 bits can count, and more tensors than 16 bits can."""

import gc

import pytest
import torch

import fusedstep.hf
import fusedstep.optim
from tests.support.cases import same_bits
from tests.support.gpu_runs import BACKENDS, assert_same_numbers, backend_on, numbers

pytestmark = pytest.mark.gpu


@pytest.fixture(params=BACKENDS)
def backend(request, gpu):
    return backend_on(request.param, gpu)


@pytest.fixture(autouse=True)
def memory_is_given_back():
    """Workers share a GPU. Memory that torch keeps here could make another worker skip a test."""
    yield
    gc.collect()
    torch.cuda.empty_cache()


def enough_memory(needed):
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of free GPU memory")


@pytest.mark.slow
def test_more_elements_than_32_bits_count_are_stepped_by_adamw(backend, gpu):
    """The elements at the front, at 2^31 and at the end equal those of separate small lists."""
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
    whole = fusedstep.optim.AdamW([param], lr=0.05, weight_decay=0.1, backend=backend)
    apart = fusedstep.optim.AdamW(parts, lr=0.05, weight_decay=0.1, backend=backend)
    for _ in range(2):
        whole.step()
        apart.step()
    for part, k in zip(parts, starts, strict=True):
        assert same_bits(param.detach()[k : k + 4096], part.detach())
        for key in ("exp_avg", "exp_avg_sq"):
            assert same_bits(whole.state[param][key][k : k + 4096], apart.state[part][key])


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [(2**31 + 5001,), (65_537, 32_771), (3, 26_755, 26_755), (1_050_001, 2048)],
    ids=str,
)
def test_more_elements_than_32_bits_count_are_stepped_by_adafactor(shape, backend, gpu):
    """Elements that are equal before the step are equal after it, as in a small tensor."""
    enough_memory(40 << 30)
    runs = []
    for own in (shape, tuple(min(size, 64) for size in shape)):
        param = torch.nn.Parameter(torch.full(own, 1.5, dtype=torch.bfloat16, device=gpu))
        param.grad = torch.full_like(param, 0.01)
        optimizer = fusedstep.hf.Adafactor([param], lr=0.25, relative_step=False, backend=backend)
        for _ in range(2):
            optimizer.step()
        assert param.min() == param.max()
        for value in optimizer.state[param].values():
            if torch.is_tensor(value):
                # Sums of equal squares. They are added in float64, so few roundings are left.
                torch.testing.assert_close(value.min(), value.max(), rtol=1e-5, atol=0.0)
        runs.append((param.detach().flatten()[0].float(), param.grad.flatten()[0]))
    (large, grad), (small, _) = runs
    assert grad == torch.tensor(0.01, dtype=torch.bfloat16, device=gpu)
    torch.testing.assert_close(large, small, rtol=2.0**-7, atol=0.0)  # one ulp of bfloat16
    assert large < 1.25


TENSORS = 70_000  # only the first dimension of a grid takes more than 65,535 blocks


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 4, 4)], ids=str)
@pytest.mark.parametrize("kind", [fusedstep.optim.AdamW, fusedstep.optim.Adafactor])
def test_more_tensors_than_16_bits_count_are_stepped(kind, shape, backend, gpu):
    """The first and the last tensors equal those of a separate list."""
    generator = torch.Generator(gpu).manual_seed(0)
    values, grads = (torch.randn(TENSORS, *shape, generator=generator, device=gpu) for _ in "pg")
    runs = []
    few = [*range(100), *range(65_500, 65_600), *range(TENSORS - 100, TENSORS)]
    for chosen in (range(TENSORS), few):
        params = [torch.nn.Parameter(value) for value in values[list(chosen)].clone().unbind()]
        for param, k in zip(params, chosen, strict=True):
            param.grad = grads[k]
        optimizer = kind(params, lr=0.05, backend=backend)
        for _ in range(2):
            optimizer.step()
        looked_at = [params[k] for k in few] if len(params) == TENSORS else params
        runs.append(numbers(optimizer, looked_at))
    assert_same_numbers(*runs)
