"""Infinite parameters and learning rates: what is a number in the peer does not become nan."""

import math

import pytest
import torch

import fusedstep.optim
from tests.support.cases import CASES, each, make_params, set_grads
from tests.support.rule_cases import has_penalty, is_factored

SHAPES = [(7,), (33, 17), (300, 1), (3, 5, 7)]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("bad", [math.inf, -math.inf])
@each(CASES)
def test_an_infinite_parameter_stays_as_it_stays_in_the_peer(case, bad, backend):
    ours_params, peer_params = make_params(SHAPES), make_params(SHAPES)
    ours, peer = case.make(ours_params, backend=backend), case.make_peer(peer_params)
    for params in (ours_params, peer_params):
        for param in params:
            param.data.view(-1)[[0, -2]] = bad  # in a full register, in the remainder
    for step in range(3):
        for params, optimizer in ((ours_params, ours), (peer_params, peer)):
            set_grads(params, step)
            optimizer.step()
        for p, q in zip(ours_params, peer_params, strict=True):
            # A peer that adds -decay * p to p makes nan if there is decay.
            assert not (p.isnan() & ~q.isnan()).any()
            assert torch.equal(p[~q.isnan()] == bad, q[~q.isnan()] == bad)
    # A factored step may be scaled by the parameter, and a penalty makes the gradient infinite.
    if not is_factored(case) and not (has_penalty(case) and case.options.get("weight_decay")):
        assert all((param.view(-1)[[0, -2]] == bad).all() for param in ours_params)


def test_without_a_limit_the_time_decides_the_step_of_torchs_adafactor():
    ours_params, peer_params = make_params(SHAPES), make_params(SHAPES)
    ours = fusedstep.optim.Adafactor(ours_params, lr=math.inf)
    peer = torch.optim.Adafactor(peer_params, lr=math.inf)
    for step in range(3):
        for params, optimizer in ((ours_params, ours), (peer_params, peer)):
            set_grads(params, step)
            optimizer.step()
    for p, q in zip(ours_params, peer_params, strict=True):
        torch.testing.assert_close(p, q)
