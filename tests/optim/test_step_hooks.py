"""What torch.optim puts around a step: hooks of one optimizer and of all, and a range for
profilers. Our steps leave it out only while nobody looks."""

import pytest
import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import fusedstep.optim
from tests.support.cases import make_params, set_grads

RANGE = "Optimizer.step#AdamW.step"


@pytest.fixture
def optimizer():
    """After a step without hooks."""
    params = make_params([(3,), (4, 5)])
    set_grads(params, 0)
    made = fusedstep.optim.AdamW(params)
    made.step()
    return made


def test_hooks_of_all_optimizers_run(optimizer):
    seen = []
    handles = [
        register_optimizer_step_pre_hook(lambda own, *_: seen.append(("before", own))),
        register_optimizer_step_post_hook(lambda own, *_: seen.append(("after", own))),
    ]
    try:
        optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    optimizer.step()
    assert seen == [("before", optimizer), ("after", optimizer)]


@pytest.mark.parametrize("place", ["pre", "post"])
def test_hooks_that_come_later_run_until_they_are_removed(optimizer, place):
    seen = []
    handle = getattr(optimizer, f"register_step_{place}_hook")(lambda *_: seen.append(place))
    optimizer.step()
    handle.remove()
    optimizer.step()
    assert seen == [place]


def test_a_hook_may_replace_the_closure(optimizer):
    optimizer.register_step_pre_hook(lambda own, args, kwargs: ((own, lambda: 3.0), {}))
    assert optimizer.step() == 3.0


def test_a_profiler_sees_a_step_as_it_sees_those_of_torch(optimizer):
    kinds = []
    for made in (optimizer, torch.optim.AdamW(make_params([(3,)]))):
        with torch.profiler.profile() as seen:
            made.step()
        kinds.append([event.is_user_annotation for event in seen.events() if event.name == RANGE])
    assert kinds[0] == kinds[1] == [True]


def test_an_observer_sees_a_step(optimizer, tmp_path):
    """It is no profiler of this thread."""
    observer = torch.profiler.ExecutionTraceObserver()
    observer.register_callback(str(tmp_path / "trace.json"))
    observer.start()
    optimizer.step()
    observer.stop()
    observer.unregister_callback()
    assert RANGE in (tmp_path / "trace.json").read_text()


@pytest.mark.parametrize("enabled", [True, False])
def test_a_step_keeps_the_mode_of_gradients(optimizer, enabled):
    seen = []

    def closure():
        seen.append(torch.is_grad_enabled())
        return 1.0

    with torch.set_grad_enabled(enabled):
        optimizer.step(closure)
        assert torch.is_grad_enabled() == enabled
        optimizer.param_groups[0]["lr"] = -1.0
        with pytest.raises(ValueError, match="lr"):
            optimizer.step()
        assert torch.is_grad_enabled() == enabled
    assert seen == [True]
