"""Norms of gradients on a backend, as `max_grad_norm` needs them, compared with float64."""

import math

import pytest
import torch

from tests.support.cases import make_params, same_bits, set_grads
from tests.support.clipping import norm
from tests.support.problems import assert_room_is_untouched, placed
from tests.support.rule_cases import CASE_OF

# Of one unit and of two, and of fewer elements than a thread loads at once.
SHAPES = [(), (7,), (0,), (33, 17), (4097,), (3, 5, 7), (32768,), (2, 16500)]
# Sums of a few squares in float32, then float64.
NEAR = 1e-7


def optimizer_of(params, backend, rule="adamw", limit=0.5, **options):
    return CASE_OF[rule].make(params, max_grad_norm=limit, backend=backend, **options)


def check_norms(backend, dtype, shapes=SHAPES, scales=(1.0,), rule="adamw", offset=0, device="cpu"):
    """The norm is that of float64, bits do not change, and a step is one with smaller gradients."""
    params, twins = (
        [torch.nn.Parameter(placed(p.detach().to(device))) for p in make_params(shapes, dtype)]
        for _ in range(2)
    )
    # A limit that the norm does not reach, or by half: a factor that is a power of two.
    optimizer = optimizer_of(params, backend, rule)
    plain = CASE_OF[rule].make(twins, backend=backend)
    found = []
    for step, scale in enumerate((*scales, scales[0])):
        for own in (params, twins):
            given = make_params(shapes, dtype)
            set_grads(given, 0, 64.0)
            for param, other in zip(own, given, strict=True):
                grad = (other.grad.double() * scale).to(dtype)
                param.grad = placed(grad.to(device), offset)
        grads = [param.grad for param in params]
        if step % 3 == 1:
            params[-1].grad = twins[-1].grad = grads[-1] = torch.zeros_like(params[-1])
        exact = norm(grads)
        is_clipped = step % 2 == 0
        optimizer.max_grad_norm = (exact + 1e-6) / 2 if is_clipped else 1e30
        for param in twins:
            param.grad.mul_(0.5 if is_clipped else 1.0)
        optimizer.step()
        plain.step()
        assert optimizer.grad_norm.item() == pytest.approx(exact, rel=NEAR)
        found.append(optimizer.grad_norm.item())
        assert all(map(same_bits, [param.grad for param in params], grads))
        for grad in grads:
            if grad.numel() and grad.storage_offset():
                assert_room_is_untouched(grad)
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)
    return found


def give(params):
    given = make_params([tuple(param.shape) for param in params])
    set_grads(given, 0, 1.0)
    for param, other in zip(params, given, strict=True):
        param.grad = other.grad.to(param.device)


def check_absent_and_strange(backend, device="cpu"):
    made = make_params([(40,), (5, 6), (1030,)])
    params = [torch.nn.Parameter(param.detach().to(device)) for param in made]
    optimizer = optimizer_of(params, backend)
    for absent in (0, None, 2, (0, 1, 2)):
        give(params)
        for k in (absent,) if isinstance(absent, int) else absent or ():
            params[k].grad = None
        optimizer.step()
        exact = norm([param.grad for param in params if param.grad is not None])
        assert optimizer.grad_norm.item() == pytest.approx(exact, rel=NEAR)
    for bad in (math.inf, -math.inf, math.nan):
        give(params)
        params[2].grad[1029] = bad
        optimizer.step()
        assert same_bits(optimizer.grad_norm.cpu(), torch.tensor(bad, dtype=torch.float64).abs())
