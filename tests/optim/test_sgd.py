"""SGD has no step counter in its states: what it does about first steps, noise and graphs."""

import copy

import pytest
import torch

import fusedstep.optim
from tests.support.cases import make_params, same_bits, set_grads
from tests.support.fake_device import ready  # noqa: F401

SGD = fusedstep.optim.SGD
SHAPES = [(7,), (33, 17)]
OPTIONS = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}


def stepped(make, params, steps, **options):
    optimizer = make(params, **OPTIONS, **options)
    for step in steps:
        set_grads(params, step)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("missing", ["None", "key", "state"])
def test_a_state_without_a_buffer_starts_with_the_gradient_as_in_torch(missing):
    """torch's checkpoints may hold None."""
    ours, peers = make_params(SHAPES), make_params(SHAPES)
    made = [stepped(SGD, ours, [0]), stepped(torch.optim.SGD, peers, [0])]
    for optimizer, params in zip(made, (ours, peers), strict=True):
        if missing == "None":
            optimizer.state[params[0]]["momentum_buffer"] = None
        elif missing == "key":
            del optimizer.state[params[0]]["momentum_buffer"]
        else:
            del optimizer.state[params[0]]
        for step in (1, 2):
            set_grads(params, step)
            optimizer.step()
    for p, q in zip(ours, peers, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
        buffers = [opt.state[x]["momentum_buffer"] for opt, x in zip(made, (p, q), strict=True)]
        torch.testing.assert_close(*buffers, rtol=1e-6, atol=1e-6)


def test_a_skipped_step_is_not_the_first_one():
    """A scaler finds infinities in the first steps."""
    params, alone = make_params(SHAPES), make_params(SHAPES)
    optimizer = SGD(params, **OPTIONS, fused=True)
    for step, found in ((0, 1.0), (0, 1.0), (1, 0.0), (2, 0.0)):
        set_grads(params, step)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(found)
        optimizer.step()
    expected = stepped(SGD, alone, [1, 2])
    for p, q in zip(params, alone, strict=True):
        assert same_bits(p, q)
        buffer, wanted = optimizer.state[p]["momentum_buffer"], expected.state[q]["momentum_buffer"]
        assert same_bits(buffer, wanted)


def test_momentum_may_be_switched_on_and_off_as_in_torch():
    runs = []
    for make in (SGD, torch.optim.SGD):
        params = make_params(SHAPES)
        optimizer = make(params, lr=0.1)
        for step, momentum in enumerate((0.0, 0.9, 0.9, 0.0, 0.9)):
            optimizer.param_groups[0]["momentum"] = momentum
            set_grads(params, step)
            optimizer.step()
        runs.append(params)
    for p, q in zip(*runs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


def test_without_momentum_there_is_no_state():
    params = make_params(SHAPES)
    optimizer = SGD(params, lr=0.1)
    for step in range(2):
        set_grads(params, step)
        optimizer.step()
    assert optimizer.state_dict()["state"] == {}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_noise_has_a_counter_and_takes_checkpoints_without_one(momentum):
    params = make_params(SHAPES, torch.bfloat16)
    options = {"lr": 0.1, "momentum": momentum}
    optimizer = SGD(params, **options, stochastic_rounding=True)
    for step in range(3):
        set_grads(params, step)
        optimizer.step()
    assert [state["step"].item() for state in optimizer.state.values()] == [3.0, 3.0]
    peer = torch.optim.SGD(make_params(SHAPES, torch.bfloat16), **options)
    set_grads(peer.param_groups[0]["params"], 0)
    peer.step()
    optimizer.load_state_dict(copy.deepcopy(peer.state_dict()))
    set_grads(params, 3)
    optimizer.step()
    counts = [state["step"].item() for state in optimizer.state.values()]
    assert counts == ([2.0, 2.0] if momentum else [1.0, 1.0])
    peer.load_state_dict(optimizer.state_dict())  # torch leaves the counter alone
    peer.step()


def test_a_graph_may_capture_a_step_after_one_outside_it(ready, capturing):  # noqa: F811
    optimizer, _ = ready(kind=SGD, **OPTIONS)
    capturing.add("meta")
    optimizer.step()
    assert len(optimizer._captured) == 1
