"""What a CUDA graph may capture of a step, and what is refused. There are no graphs here, only
streams that claim to be captured."""

import pytest
import torch

import fusedstep.hf
import fusedstep.optim
from fusedstep.plan import devices
from tests.support.cases import make_params, set_grads
from tests.support.fake_device import (
    ADAFACTOR,
    ADAMW,
    OLD_ADAMW,
    SHAPES,
    to_meta,
)
from tests.support.garbage import assert_freed

# Graphs.


@pytest.mark.parametrize("kind", [ADAMW, ADAFACTOR])
def test_a_captured_plan_lives_as_long_as_the_optimizer(kind, ready, capturing, recorder):
    optimizer, params = ready(kind=kind)
    plan = optimizer._plan
    assert optimizer._captured == []
    capturing.add("meta")
    for _ in range(2):
        optimizer.step()
        assert optimizer._captured == [plan]
    assert len(recorder.launched) == 3 * len(plan.buckets)
    capturing.clear()
    params[0].grad = None
    optimizer.step()
    assert optimizer._plan is not plan
    assert optimizer._captured == [plan]


def test_a_captured_optimizer_is_freed_without_the_garbage_collector(ready, capturing, recorder):
    def make():
        optimizer, params = ready()
        capturing.add("meta")
        optimizer.step()
        recorder.launched.clear()
        return optimizer, params

    assert_freed(make)


def test_a_step_of_sharded_parameters_cannot_be_captured(ready, capturing, recorder):
    optimizer, _ = ready(kind=ADAFACTOR)
    optimizer._plan.exchange = object()  # it sends nothing: the capture is refused before
    before = len(recorder.launched)
    capturing.add("meta")
    with pytest.raises(RuntimeError, match=r"Adafactor: some parameters are sharded.*outside"):
        optimizer.step()
    assert len(recorder.launched) == before and optimizer._captured == []


def test_a_first_step_cannot_be_captured(ready, capturing):
    optimizer, _ = ready(steps_before=0)
    capturing.add("meta")
    with pytest.raises(RuntimeError, match="AdamW: run one warm-up step before capture"):
        optimizer.step()
    assert not any(optimizer.state.values())
    capturing.clear()
    optimizer.step()
    capturing.add("meta")
    optimizer.step()


def test_a_change_of_what_is_stepped_cannot_be_captured(ready, capturing):
    optimizer, params = ready()
    plan, kept = optimizer._plan, dict(optimizer.state[params[0]])
    params[0].grad = None
    capturing.add("meta")
    with pytest.raises(RuntimeError, match="warm-up step before capture"):
        optimizer.step()
    assert optimizer._plan is plan
    assert all(optimizer.state[params[0]][key] is value for key, value in kept.items())


@pytest.mark.parametrize("steps_before", [0, 1])
@pytest.mark.parametrize("kind", [ADAMW, ADAFACTOR])
def test_counters_on_the_host_cannot_be_captured(kind, steps_before, ready, capturing, recorder):
    optimizer, _ = ready(steps_before, kind, capturable=False)
    before = len(recorder.launched)
    capturing.add("meta")
    with pytest.raises(RuntimeError, match=rf"{kind.__name__}.*capturable=True.*'fc\.bias'"):
        optimizer.step()
    assert len(recorder.launched) == before
    assert [s["step"] for s in optimizer.state.values() if s] == [1, 1][: 2 * steps_before]
    assert optimizer._captured == []


@pytest.mark.parametrize("steps_before", [0, 1])
@pytest.mark.parametrize("kind", [fusedstep.hf.Adafactor, OLD_ADAMW])
def test_python_counters_cannot_be_captured(kind, steps_before, meta, recorder, capturing):
    params = to_meta(make_params([(3,)]))
    more = {"no_deprecation_warning": True} if kind is OLD_ADAMW else {"scale_parameter": False}
    optimizer = kind(params, backend="recorder", **more)
    for _ in range(steps_before):
        optimizer.step()
    capturing.add("meta")
    with pytest.raises(
        RuntimeError,
        match=rf"{kind.__name__} keeps Python step counters.*"
        r"fusedstep\.optim\.Adafactor\(\.\.\., capturable=True\)",
    ):
        optimizer.step()
    assert [s["step"] for s in optimizer.state.values() if s] == [1][:steps_before]


def test_parameters_of_the_host_cannot_be_captured_with_others(meta, recorder, capturing):
    near, far = make_params([(3,)]), to_meta(make_params([(3,)]))
    set_grads(near, 0)
    optimizer = ADAMW([*far, *near], fused=True, backend="recorder")
    optimizer.step()
    capturing.add("meta")
    with pytest.raises(RuntimeError, match=r"parameter 1 of group 0.*separate optimizer"):
        optimizer.step()


def test_a_step_on_the_host_does_not_ask_about_captures(monkeypatch):
    def asked(device):
        raise AssertionError("asked")

    monkeypatch.setattr(devices, "is_capturing", asked)
    params = make_params(SHAPES)
    for optimizer in (ADAMW(params), ADAFACTOR(params), fusedstep.hf.Adafactor(params)):
        set_grads(params, 0)
        optimizer.step()


def test_the_host_captures_nothing():
    assert not devices.is_capturing(torch.device("cpu"))
    assert not devices.is_capturing(torch.device("meta"))


def move_gradients(params):
    for param in params:
        param.grad = param.grad.clone()


def test_a_captured_plan_is_given_up_when_gradients_move(on_device, recorder, capturing):
    """The graph still reads the addresses that it was captured with."""
    on_device()
    params = make_params([(3,), (4, 5)])
    optimizer = ADAMW(params, capturable=True, backend="recorder")
    set_grads(params, 0)
    optimizer.step()
    kept = [param.grad for param in params]
    move_gradients(params)
    capturing.add("cpu")
    optimizer.step()  # gradients may move once, into the graph's memory
    graph = optimizer._plan
    (flat,) = graph.counters.flats
    kept += [param.grad for param in params]
    move_gradients(params)
    for reason in (r"moved since.*warm-up.*set_to_none=False", "run one warm-up"):
        with pytest.raises(RuntimeError, match=reason):
            optimizer.step()
        assert optimizer._captured == [graph]
    capturing.clear()
    optimizer.step()
    assert optimizer._plan is not graph
    assert optimizer._plan.counters.flats[0].data_ptr() == flat.data_ptr()
    assert flat.tolist() == [3.0, 3.0]


def test_a_plan_whose_gradients_moved_after_capture_is_never_used_again(
    on_device, recorder, capturing
):
    on_device()
    params = make_params([(3,), (4, 5)])
    optimizer = ADAMW(params, capturable=True, backend="recorder")
    set_grads(params, 0)
    capturing.clear()
    optimizer.step()
    capturing.add("cpu")
    optimizer.step()
    graph, grads = optimizer._plan, [param.grad for param in params]
    move_gradients(params)
    with pytest.raises(RuntimeError, match="tensors moved since an earlier graph was captured"):
        optimizer.step()
    capturing.clear()
    assert optimizer._plan is None
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    optimizer.step()
    assert optimizer._plan is not graph


def test_a_step_asks_once_whether_it_is_captured(meta, monkeypatch):
    """For each device, whatever the number of buckets."""
    asked = []
    monkeypatch.setattr(devices, "is_capturing", lambda device: asked.append(device) or False)
    params = to_meta(make_params([(3,), (4, 5)]))
    optimizer = ADAFACTOR(params, capturable=True, backend="recorder")
    optimizer.step()
    assert len(optimizer._plan.buckets) == 2
    for _ in range(2):
        asked.clear()
        optimizer.step()
        assert asked == [torch.device("meta")]
