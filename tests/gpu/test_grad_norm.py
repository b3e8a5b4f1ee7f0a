"""max_grad_norm on a GPU: the norm, and what it launches, copies and waits for. Tests of the latter
record launches and do not run them, so they need no GPU."""

import pytest
import torch

import fusedstep.optim
from fusedstep.gpu import cut
from tests.support.calls import Calls
from tests.support.cases import DTYPES, make_params, set_grads
from tests.support.gpu_runs import BACKENDS, backend_on, no_waiting
from tests.support.norms import SHAPES, check_absent_and_strange, check_norms, optimizer_of
from tests.support.recorded_cuda import register
from tests.support.rule_cases import CASE_OF


@pytest.mark.gpu
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("rule", ["adamw", "adafactor"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_are_those_of_float64(dtype, rule, name, device):
    check_norms(backend_on(name, device), dtype, rule=rule, device=device)
    check_norms(backend_on(name, device), dtype, SHAPES[:5], rule=rule, offset=1, device=device)


@pytest.mark.gpu
@pytest.mark.parametrize("name", BACKENDS)
def test_strange_numbers_are_no_harm(name, device):
    check_norms(backend_on(name, device), DTYPES[0], [(7,)], (1e-25, 1e25, 1e-10), device=device)
    check_absent_and_strange(backend_on(name, device), device)


@pytest.mark.gpu
@pytest.mark.parametrize("name", BACKENDS)
def test_the_host_does_not_wait(name, gpu):
    params = [torch.nn.Parameter(p.detach().to(gpu)) for p in make_params(SHAPES)]
    optimizer = optimizer_of(params, backend_on(name, gpu), capturable=True)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    with no_waiting():
        optimizer.step()
        optimizer.max_grad_norm = 2.0
        optimizer.step()


@pytest.fixture
def recorded(monkeypatch):
    return register(monkeypatch)


@pytest.mark.parametrize("rule", ["adamw", "adafactor"])
def test_the_norm_takes_one_launch_for_each_bucket(recorded, rule):
    params = make_params([(40000,), (3, 5), (0,), (70, 1024)])
    optimizer = CASE_OF[rule].make(params, backend="recorded")
    for limit, norms in ((None, 0), (1.0, 1), (2.0, 1), (None, 0)):
        optimizer.max_grad_norm = limit
        set_grads(params, 0)
        recorded.norms.clear(), recorded.launched.clear()
        optimizer.step()
        buckets = len(optimizer._plan.buckets)
        assert len(recorded.launched) == buckets
        assert len(recorded.norms) == norms * buckets


def test_a_long_gradient_is_cut_into_units(recorded):
    params = make_params([(7,), (cut.GRADIENT_UNIT + 1,), (2, cut.GRADIENT_UNIT // 2)])
    optimizer = optimizer_of(params, "recorded")
    set_grads(params, 0)
    optimizer.step()
    ((bucket, _, _),) = recorded.norms
    assert bucket.squares == [0, 0, 1, 0, 1, 1, 2, 0]


def test_calls_of_torch_do_not_grow_with_the_number_of_parameters(recorded):
    counts = []
    for copies in (5, 100):
        params = make_params(copies * [(3,), (4, 5)])
        optimizer = optimizer_of(params, "recorded")
        for step in range(3):
            set_grads(params, step)
            with Calls() as calls:
                optimizer.step()
        counts.append(calls.count)
    assert counts[0] == counts[1]
    assert not calls.waits()


# Captures. There are no graphs here, only streams that claim to be captured.


def norms_on_meta(launcher, capturing=False):
    return torch.empty(len(launcher.bucket.members), dtype=torch.float64, device="meta")


@pytest.fixture
def counted(monkeypatch, recorder):
    """Lets the fake device's launcher sum squares, which nobody can read."""
    from tests.support.fake_device import RecordingLauncher

    monkeypatch.setattr(RecordingLauncher, "square_sums", norms_on_meta, raising=False)
    monkeypatch.setattr(
        RecordingLauncher, "square_counts", lambda self: [1] * len(self.bucket.members)
    )


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("kind", [fusedstep.optim.AdamW, fusedstep.optim.Adafactor])
def test_nothing_is_read_and_a_step_may_be_captured(kind, ready, capturing):
    optimizer, _ = ready(kind=kind, max_grad_norm=1.0)
    capturing.add("meta")
    with Calls() as calls:
        optimizer.step()
    assert not calls.waits()
    assert optimizer.grad_norm.device.type == "meta" and optimizer.grad_norm.shape == ()


@pytest.mark.usefixtures("counted")
def test_a_limit_that_comes_with_the_capture_is_refused(ready, capturing, recorder):
    optimizer, _ = ready()
    optimizer.max_grad_norm = 1.0
    before = len(recorder.launched)
    capturing.add("meta")
    with pytest.raises(RuntimeError, match="Run one warm-up step with it before the capture"):
        optimizer.step()
    assert len(recorder.launched) == before
    capturing.clear()
    optimizer.step()
    capturing.add("meta")
    optimizer.step()
