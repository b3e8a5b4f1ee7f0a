"""Weight decay of any strength is as exact as the peer's and the same on all backends."""

import random

import pytest
import torch

from fusedstep import backends
from tests.support.cases import assert_same, each, make_params, set_grads
from tests.support.decays import RULES_WITH_DECAY, STRONG, with_decay

DECAYS = [0.0, 1e-9, 0.01, 0.1, 0.3, 0.45, 0.4999, 0.5, 0.51, 0.7, 0.9, 0.99, 1 - 1e-6, 1 - 1e-12]
DECAYS += [1.0, *(random.Random(0).random() for _ in range(12))]
OTHERS = [name for name, own in backends.BACKENDS.items() if "cpu" in own.devices()]


@pytest.mark.parametrize("name", RULES_WITH_DECAY)
def test_the_error_is_at_most_twice_the_peers_at_every_decay(name):
    """The error is the rms over 65,536 numbers, so chance plays no part and there is no floor."""
    generator = torch.Generator().manual_seed(0)
    start, grad = torch.randn(2, 256, 256, generator=generator)
    start /= start.double().square().mean().sqrt().float()

    def error(optimizer, exact):
        return (stepped(optimizer, torch.float32) - exact).square().mean().sqrt().item()

    def stepped(optimizer, dtype):
        param = torch.nn.Parameter(start.to(dtype))
        param.grad = grad.to(dtype)
        optimizer([param]).step()
        return param.detach().double()

    for decay in DECAYS:
        case = with_decay(name, decay)
        exact = stepped(case.make_peer, torch.float64)
        own, other = error(case.make, exact), error(case.make_peer, exact)
        assert own <= 2 * other, f"{decay=}: {own} and {other}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@each(STRONG)
def test_backends_agree_on_strong_decays(case, dtype):
    def run(backend):
        params = make_params([(), (7,), (1025,), (33, 17), (3, 5, 7), (300, 260)], dtype)
        params[1].data[0] = torch.inf
        optimizer = case.make(params, backend=backend)
        for step in range(3):
            set_grads(params, step)
            optimizer.step()
        return optimizer, params

    for backend in OTHERS:
        if backend != "reference":
            assert_same(*run(backend), *run("reference"))
