"""On a GPU, with both backends: a step never waits, makes no large temporary, and launches a
constant number of kernels."""

import pytest
import torch

import fusedstep.hf
import fusedstep.optim
from tests.support.gpu_runs import BACKENDS, backend_on, no_waiting, work_of
from tests.support.parameter_lists import LISTS

pytestmark = pytest.mark.gpu

QUIET = {"no_deprecation_warning": True}
FIXED = {"lr": 1e-3, "scale_parameter": False, "relative_step": False}
OPTIMIZERS = {
    "adamw": lambda params: fusedstep.optim.AdamW(params),
    "adamw-amsgrad": lambda params: fusedstep.optim.AdamW(params, amsgrad=True),
    "adamw-capturable": lambda params: fusedstep.optim.AdamW(params, capturable=True),
    "adamw-fused": lambda params: fusedstep.optim.AdamW(params, fused=True),
    "old-adamw": lambda params: fusedstep.hf.AdamW(params, **QUIET),
    "adafactor": lambda params: fusedstep.optim.Adafactor(params),
    "adafactor-capturable": lambda params: fusedstep.optim.Adafactor(params, capturable=True),
    "hf-adafactor": lambda params: fusedstep.hf.Adafactor(params),
    "hf-adafactor-trainer": lambda params: fusedstep.hf.Adafactor(params, **FIXED),
    "hf-adafactor-momentum": lambda params: fusedstep.hf.Adafactor(params, beta1=0.9),
}
each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
SHAPES = [(7,), (1025,), (33, 17), (300, 256), (9000, 3, 3), (20, 20_000), (0,)]


@pytest.fixture(autouse=True, params=BACKENDS)
def backend(request, gpu, monkeypatch):
    """The default backend of the test's optimizers."""
    name = backend_on(request.param, gpu)
    monkeypatch.setenv("FUSEDSTEP_BACKEND", name)
    return name


def a_list(shapes, device, dtype=torch.float32):
    params = [torch.nn.Parameter(torch.ones(shape, device=device, dtype=dtype)) for shape in shapes]
    new_gradients(params)
    return params


def new_gradients(params):
    """Makes gradients at new addresses, as after `zero_grad`."""
    for param in params:
        param.grad = torch.full_like(param, 0.5)


@each_optimizer
def test_a_step_on_the_device_waits_for_nothing(name, backend, gpu):
    params = a_list(SHAPES, gpu)
    optimizer = OPTIMIZERS[name](params)
    for _ in range(2):  # compiles kernels, makes states and the plan
        optimizer.step()
    for group in optimizer.param_groups:
        if group["lr"] is not None:
            group["lr"] *= 0.5
    with no_waiting():
        optimizer.step()
        new_gradients(params)
        optimizer.step()
    assert optimizer._plan.launchers[0].backend.name == backend


@pytest.mark.parametrize("name", ["adamw-fused", "adamw-capturable"])
def test_a_step_with_a_scale_on_the_device_waits_for_nothing(name, gpu):
    params = a_list(SHAPES, gpu)
    optimizer = OPTIMIZERS[name](params)
    optimizer.grad_scale = torch.tensor(4.0, device=gpu)
    optimizer.found_inf = torch.tensor(0.0, device=gpu)
    for _ in range(2):
        optimizer.step()
    with no_waiting():
        new_gradients(params)
        optimizer.step()


def test_the_guard_against_waiting_sees_a_read(gpu):
    x = torch.ones(3, device=gpu)
    with no_waiting(), pytest.raises(RuntimeError, match="synchroniz"):
        x[0].item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shapes", LISTS)
@each_optimizer
def test_a_step_takes_a_small_share_of_the_parameters_memory(name, shapes, dtype, gpu):
    """The peak of what is asked of torch's allocator: scratch, tables and temporaries together. Its
    blocks can be larger. A small list may need more, see test_host.py."""
    params = a_list(LISTS[shapes], gpu, dtype)
    size = sum(p.nbytes for p in params)
    most = max(0.02 * size, 4 * 128 * 8192 * 2 * 4)
    optimizer = OPTIMIZERS[name](params)

    def peak_of_a_step():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_stats()["requested_bytes.all.current"]
        optimizer.step()
        return torch.cuda.memory_stats()["requested_bytes.all.peak"] - before

    first = peak_of_a_step()
    states = sum(
        x.nbytes for s in optimizer.state.values() for x in s.values() if torch.is_tensor(x)
    )
    assert first - states <= most, f"first step: {(first - states) / size:.2%}"
    later = peak_of_a_step()
    assert later <= most, f"{later / size:.2%}"


@each_optimizer
def test_a_later_step_takes_no_memory_from_the_device(name, gpu):
    """torch's allocator reuses the memory for scalars from earlier steps."""
    params = a_list(SHAPES, gpu)
    optimizer = OPTIMIZERS[name](params)
    for _ in range(3):
        optimizer.step()
    torch.cuda.synchronize()

    def taken():
        return torch.cuda.memory_allocated(), torch.cuda.memory_stats()["segment.all.allocated"]

    before = taken()
    for _ in range(5):
        optimizer.step()
    torch.cuda.synchronize()
    assert taken() == before


@each_optimizer
def test_launches_on_the_device_do_not_grow_with_the_number_of_tensors(name, backend, gpu):
    counts = []
    for n in (30, 150):  # for up to 16 tensors torch gathers counters with another kernel
        params = a_list(n * [(3,), (40, 50), (16, 64)], gpu)
        optimizer = OPTIMIZERS[name](params)
        for _ in range(2):
            optimizer.step()
        work_of(optimizer.step)  # warms up the profiler
        counts.append(work_of(optimizer.step))
    assert sum(counts[0].values()) >= 1, "the profiler saw nothing on the device"
    assert counts[0] == counts[1]
    assert sum(counts[1].values()) <= 80, counts[1]
    if backend == "cuda" and "adamw" in name:
        assert sum(n for kernel, n in counts[1].items() if "fusedstep" in kernel) == 1, counts[1]


def test_the_count_of_launches_sees_what_grows(gpu):
    counts = []
    for n in (3, 30):
        params = a_list(n * [(3,), (4, 5)], gpu)
        optimizer = fusedstep.optim.AdamW(params, backend="reference")
        optimizer.step()
        counts.append(sum(work_of(optimizer.step).values()))
    assert counts[1] > 5 * counts[0]
