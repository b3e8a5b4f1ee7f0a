"""hf.Adafactor's states after a load: never narrower than transformers' are at its next step."""

import copy

import pytest
import torch

from tests.support.cases import CASES, each, make_params, set_grads, states

SHAPES = [(7,), (33, 17), (3, 5, 7)]
HF = [case for case in CASES if case.name in ("hf-adafactor", "hf-adafactor-momentum")]


def stepped(optimizer, params, first, steps):
    for step in range(first, first + steps):
        set_grads(params, step, scale=1.0)
        optimizer.step()


def saved_right_after_a_load(case, dtype):
    """transformers rounds states to the parameters' dtype when it loads them."""
    params = make_params(SHAPES, dtype)
    peer = case.make_peer(params)
    stepped(peer, params, 0, 3)
    peer.load_state_dict(copy.deepcopy(peer.state_dict()))
    return params, copy.deepcopy(peer.state_dict())


def copies(params):
    return [torch.nn.Parameter(param.detach().clone()) for param in params]


def averages(state):
    return {key: value for key, value in state.items() if key.startswith("exp_avg")}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each(HF)
def test_states_in_sixteen_bits_are_widened_as_transformers_next_step_does(case, dtype):
    params, saved = saved_right_after_a_load(case, dtype)
    for state in saved["state"].values():
        assert {value.dtype for value in averages(state).values()} == {dtype}
    runs = []
    for make in (case.make, case.make_peer):
        own = copies(params)
        optimizer = make(own)
        optimizer.load_state_dict(copy.deepcopy(saved))
        stepped(optimizer, own, 3, 4)
        runs.append((optimizer, own))
    (ours, ours_params), (peer, peer_params) = runs
    for p, q in zip(ours_params, peer_params, strict=True):
        for key, value in averages(peer.state[q]).items():
            got = ours.state[p][key]
            assert got.dtype == value.dtype == torch.float32
            if key != "exp_avg":
                # A 16-bit state would be off by 2^-9 or 2^-11 of its value. A momentum depends on
                # rms(p), and so on the last bits of 16-bit parameters.
                torch.testing.assert_close(got, value, rtol=2e-5, atol=1e-9)


@each(HF)
def test_nothing_is_rounded_by_widening(case):
    params, saved = saved_right_after_a_load(case, torch.bfloat16)
    own = copies(params)
    optimizer = case.make(own)
    optimizer.load_state_dict(copy.deepcopy(saved))
    for param, state in zip(own, saved["state"].values(), strict=True):
        for key, value in averages(optimizer.state[param]).items():
            assert torch.equal(value, state[key].float())


@pytest.mark.parametrize(
    ("param", "saved", "loaded"),
    [
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float32, torch.float32, torch.float32),
        (torch.float32, torch.float64, torch.float64),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.bfloat16, torch.float64, torch.float64),
        (torch.float64, torch.float32, torch.float64),
        (torch.float64, torch.bfloat16, torch.float64),
    ],
    ids=str,
)
@each(HF)
def test_what_a_state_is_loaded_as(case, param, saved, loaded):
    params = make_params(SHAPES, param)
    optimizer = case.make(params)
    stepped(optimizer, params, 0, 1)
    state_dict = copy.deepcopy(optimizer.state_dict())
    for state in state_dict["state"].values():
        state.update({key: value.to(saved) for key, value in averages(state).items()})
    optimizer.load_state_dict(state_dict)
    for own in params:
        found = averages(states(optimizer, own))
        assert {value.dtype for value in found.values()} == {loaded}
    stepped(optimizer, params, 1, 1)


@each([case for case in CASES if case.name == "adafactor"])
def test_torchs_adafactor_keeps_what_was_saved(case):
    """Its states have the gradient's dtype, so a bfloat16 run goes on with the same bits."""
    params = make_params(SHAPES, torch.bfloat16)
    optimizer = case.make(params)
    stepped(optimizer, params, 0, 1)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for param in params:
        own = states(optimizer, param)
        assert {own[key].dtype for key in own if key != "step"} == {torch.bfloat16}
