"""When the CUDA backend is available, why it is not, and which backend takes GPU tensors then."""

import subprocess
import sys

import pytest
import torch

import fusedstep.backends.cuda
import fusedstep.optim
from fusedstep import __main__, backends
from tests.support import recorded_cuda
from tests.support.cases import CASES, make_params, set_grads
from tests.support.recorded_cuda import Module, started

ADAMW = next(case for case in CASES if case.name == "adamw")


@pytest.fixture
def module(monkeypatch):
    return recorded_cuda.register(monkeypatch)


def backend_with(found, device_types=("cuda",)):
    return fusedstep.backends.cuda.CudaBackend("cuda", lambda: found, device_types)


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"NVIDIA H{index}")


def test_it_says_why_it_is_absent(monkeypatch):
    assert backend_with("there is none").why_absent() == "there is none"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert backend_with(Module()).why_absent() == "no GPU: torch finds no cuda device"


@pytest.mark.usefixtures("two_gpus")
def test_it_is_absent_only_if_no_device_can_be_used():
    module = Module()
    backend = backend_with(module)
    assert backend.why_absent() == ""
    assert backend.describe() == "C++ for sm_90; CUDA 13.0; on NVIDIA H0, NVIDIA H1"
    asked, module.why_unusable = [], lambda device: asked.append(device) or module.unusable[device]
    module.unusable = {0: "", 1: "it is too old"}
    assert backend.why_absent() == "" and asked == [1, 0]
    module.unusable = {0: "it is older", 1: ""}
    asked.clear()
    assert backend.why_absent() == "" and asked == [1]  # the current device is asked first
    module.unusable = {0: "it is older", 1: "it is too old"}
    assert backend.why_absent() in ("it is older", "it is too old")


def test_a_module_that_is_not_there_or_not_for_this_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "fusedstep._cuda", None)
    assert "is not built: no nvcc was found when" in fusedstep.backends.cuda._built()

    def broken(name):
        raise ImportError("undefined symbol: x")

    monkeypatch.setattr(fusedstep.backends.cuda.importlib, "import_module", broken)
    assert fusedstep.backends.cuda._built() == "the CUDA module does not load: undefined symbol: x"
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "ROCm" in fusedstep.backends.cuda._built()


def test_one_device_that_cannot_be_used_is_refused(module):
    module.unusable = {0: ""}
    optimizer, _ = started(ADAMW, [(4, 5)])
    module.unusable = {0: "its kernels were built for sm_90"}
    bucket = optimizer._plan.buckets[0]
    with pytest.raises(RuntimeError, match="recorded backend: cpu cannot be used: its kernels"):
        backends.BACKENDS["recorded"].prepare(bucket)
    optimizer.add_param_group({"params": make_params([(3,)])})
    set_grads([p for group in optimizer.param_groups for p in group["params"]], 1)
    with pytest.raises(RuntimeError, match="'recorded' is not available: its kernels were built"):
        optimizer.step()


def test_asked_for_by_name_it_is_refused_with_the_reason(monkeypatch):
    absent = backend_with("the CUDA module is not built: no nvcc")
    monkeypatch.setitem(backends.BACKENDS, "cuda", absent)
    params = make_params([(4, 5)])
    optimizer = fusedstep.optim.AdamW(params, backend="cuda")
    set_grads(params, 0)
    with pytest.raises(RuntimeError, match=r"backend='cuda' is not available: .* no nvcc"):
        optimizer.step()
    monkeypatch.setattr(absent, "why_absent", lambda: "")
    with pytest.raises(RuntimeError, match=r"tensors on cuda, not parameter 0 .*'auto'"):
        optimizer.step()
    assert not any(optimizer.state.values())


def test_auto_prefers_cuda_then_triton_then_plain_torch(monkeypatch):
    assert list(backends.BACKENDS) == ["cpu", "cuda", "triton", "reference"]
    cuda, triton = backends.BACKENDS["cuda"], backends.BACKENDS["triton"]
    for reasons, taken in (
        (("", ""), ["cpu", "cuda", "triton"]),
        (("none", ""), ["cpu", "triton", "triton"]),
        (("", "none"), ["cpu", "cuda", "reference"]),
        (("none", "none"), ["cpu", "reference", "reference"]),
    ):
        for backend, reason in zip((cuda, triton), reasons, strict=True):
            monkeypatch.setattr(backend, "why_absent", lambda reason=reason: reason)
        names = [backends.choose("auto", torch.device(d), "").name for d in ("cpu", "cuda", "xpu")]
        assert names == taken


def test_plain_torch_on_a_gpu_warns_with_every_reason(monkeypatch, recwarn):
    backends._warn_once.cache_clear()
    cuda, triton = backends.BACKENDS["cuda"], backends.BACKENDS["triton"]
    monkeypatch.setattr(cuda, "why_absent", lambda: "no nvcc")
    monkeypatch.setattr(triton, "why_absent", lambda: "")
    for device in ("cuda", "xpu", "cpu", "mps"):
        backends.warn_if_slow(backends.BACKENDS["reference"], torch.device(device))
    assert not recwarn
    monkeypatch.setattr(triton, "why_absent", lambda: "not installed")
    monkeypatch.setattr(triton, "devices", lambda: ("cuda", "xpu"))
    for device in ("cuda", "xpu", "cpu", "mps"):
        backends.warn_if_slow(backends.BACKENDS["reference"], torch.device(device))
        backends.warn_if_slow(triton, torch.device(device))
    assert [str(warning.message) for warning in recwarn] == [
        "cuda tensors are updated by plain torch. cuda: no nvcc; triton: not installed",
        "xpu tensors are updated by plain torch. triton: not installed",
    ]
    backends._warn_once.cache_clear()


def test_info_has_a_line_for_it(monkeypatch):
    monkeypatch.setitem(backends.BACKENDS, "cuda", backend_with("no nvcc"))
    assert "  cuda       absent: no nvcc\n" in __main__.info()
    monkeypatch.setitem(backends.BACKENDS, "cuda", backend_with(Module(), ("simulated",)))
    assert "  cuda       C++ for sm_90; CUDA 13.0\n" in __main__.info()


def test_tensors_of_the_cpu_ask_no_driver():
    """The CUDA driver must not start: it would not work in processes that are forked later."""
    text = (
        "import sys, torch, fusedstep.optim\n"
        "torch.cuda.is_available = torch.cuda.device_count = lambda: sys.exit('asked')\n"
        "p = torch.nn.Parameter(torch.zeros(3)); p.grad = torch.ones(3)\n"
        "fusedstep.optim.AdamW([p]).step()\n"
        "assert 'fusedstep._cuda' not in sys.modules and not torch.cuda.is_initialized()\n"
        "assert 'fusedstep.kernels' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
