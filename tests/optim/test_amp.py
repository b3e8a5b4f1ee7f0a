"""Mixed precision: a GradScaler that unscales the gradients, or leaves that to the step."""

import pytest
import torch

import fusedstep.hf
import fusedstep.optim
from tests.support.cases import assert_same, make_params, set_grads, states
from tests.support.tolerances import assert_close

SHAPES = [(7,), (1025,), (33, 17)]
OPTIONS = [{}, {"amsgrad": True, "maximize": True}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_scale_is_taken_out_of_the_gradients_and_written_back_as_in_torch(options):
    runs = []
    for optimizer_class in (fusedstep.optim.AdamW, torch.optim.AdamW):
        params = make_params(SHAPES)
        optimizer = optimizer_class(params, lr=0.05, fused=True, **options)
        assert optimizer._step_supports_amp_scaling
        grads = []
        for step in range(4):
            set_grads(params, step, scale=100.0)
            optimizer.grad_scale = torch.tensor(1024.0)
            optimizer.found_inf = torch.tensor(1.0 if step == 1 else 0.0)
            optimizer.step()
            grads += [p.grad for p in params]
        runs.append((optimizer, params, grads))
    (ours, ours_params, ours_grads), (peer, peer_params, peer_grads) = runs
    assert_close(ours, ours_params, peer, peer_params)
    for own, other in zip(ours_grads, peer_grads, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-6, atol=0.0)
    assert all(state["step"] == 3 for state in ours.state.values())


def test_a_step_that_found_an_infinity_changes_nothing():
    params = make_params(SHAPES)
    optimizer = fusedstep.optim.AdamW(params, fused=True)
    for found in (0.0, 1.0):
        set_grads(params, 0)
        before = [p.detach().clone() for p in params]
        kept = [{k: v.clone() for k, v in states(optimizer, p).items()} for p in params]
        if found:
            params[1].grad[3] = float("inf")
        grads = [p.grad.clone() for p in params]
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(found)
        optimizer.step()
    assert all(map(torch.equal, params, before))
    assert all(torch.equal(p.grad, grad) for p, grad in zip(params, grads, strict=True))
    for param, state in zip(params, kept, strict=True):
        assert state.keys() == states(optimizer, param).keys()
        assert all(
            torch.equal(value, state[key]) for key, value in states(optimizer, param).items()
        )


@pytest.mark.parametrize("attribute", ["grad_scale", "found_inf"])
def test_the_attributes_of_a_scaler_may_be_none(attribute):
    runs = []
    for set_none in (True, False):
        params = make_params(SHAPES)
        optimizer = fusedstep.optim.AdamW(params, fused=True)
        if set_none:
            setattr(optimizer, attribute, None)
        set_grads(params, 0)
        optimizer.step()
        runs.append(params)
    assert all(map(torch.equal, *runs))


@pytest.mark.parametrize(("ours", "peer", "options"), [
    (fusedstep.optim.AdamW, torch.optim.AdamW, {"lr": 0.05, "fused": True}),
    (fusedstep.optim.AdamW, torch.optim.AdamW, {"lr": 0.05}),
    (fusedstep.optim.Adafactor, torch.optim.Adafactor, {"lr": 0.05}),
], ids=str)  # fmt: skip
def test_a_grad_scaler_trains_as_with_torch(ours, peer, options):
    """The third step overflows: it is skipped, and the scale is halved."""
    runs = []
    for optimizer_class in (ours, peer):
        params = make_params(SHAPES)
        optimizer = optimizer_class(params, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
        scales = []
        for step in range(8):
            optimizer.zero_grad()
            factor = float("inf") if step == 2 else 0.1
            scaler.scale(sum((p * p).sum() for p in params) * factor).backward()
            if step == 5:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(params, 1.0)
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        runs.append((optimizer, params, scales))
    (ours_made, ours_params, ours_scales), (peer_made, peer_params, peer_scales) = runs
    assert ours_scales == peer_scales
    assert 512.0 in ours_scales
    assert_close(ours_made, ours_params, peer_made, peer_params)
    assert all(state["step"] == 7 for state in ours_made.state.values())


@pytest.mark.parametrize("make", [
    lambda params: fusedstep.optim.AdamW(params),
    lambda params: fusedstep.optim.Adafactor(params),
    lambda params: fusedstep.hf.Adafactor(params),
    lambda params: fusedstep.hf.AdamW(params, no_deprecation_warning=True),
], ids=["adamw", "adafactor", "hf-adafactor", "old-adamw"])  # fmt: skip
def test_a_scaler_unscales_by_itself_unless_asked_for(make):
    """Lightning and accelerate read the attribute as: the step unscales."""
    assert not getattr(make(make_params(SHAPES)), "_step_supports_amp_scaling", False)


def test_a_scale_is_taken_out_of_expanded_and_shared_gradients_once():
    params = [torch.nn.Parameter(torch.ones(3, 4)) for _ in range(3)]
    optimizer = fusedstep.optim.AdamW(params, fused=True)
    shared = torch.full((3, 4), 8.0)
    for param, grad in zip(
        params, (shared, shared, torch.full((1, 1), 8.0).expand(3, 4)), strict=True
    ):
        param.grad = grad
    optimizer.grad_scale = torch.tensor(4.0)
    optimizer.step()
    assert all(torch.equal(param.grad, torch.full((3, 4), 2.0)) for param in params)
    assert all(torch.equal(param, params[0]) for param in params)


FORMS = {
    "one dimension": lambda number: torch.tensor([number]),
    "two dimensions": lambda number: torch.tensor([[number]]),
    "float64": lambda number: torch.tensor(number, dtype=torch.float64),
    "a number": float,
}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [fusedstep.optim.AdamW, fusedstep.optim.Adafactor])
def test_a_scale_and_a_found_infinity_may_have_dimensions(kind, form, backend):
    """torch's fused AdamW takes any tensor of one element."""
    runs = []
    for make in (torch.tensor, FORMS[form]):
        params = make_params([(), *SHAPES])
        optimizer = kind(params, lr=0.05, backend=backend)
        for step, found in enumerate((0.0, 1.0, 0.0)):
            set_grads(params, step, scale=8.0)
            optimizer.grad_scale, optimizer.found_inf = make(4.0), make(found)
            optimizer.step()
        runs.append((optimizer, params, [param.grad for param in params]))
    (first, first_params, grads), (second, second_params, others) = runs
    assert_same(first, first_params, second, second_params)
    assert all(map(torch.equal, grads, others))
    assert all(state["step"] == 2 for state in second.state.values())
