"""How much results may differ if they need not have the same bits."""

import torch

from tests.support.cases import Case, states

FLOOR = 4  # ulps; contracts/test_peers.py has the reason


def exact_options(case: Case, dtype: torch.dtype) -> dict:
    """torch's Adafactor takes eps[0] from the dtype, and the exact run must use that of `dtype`."""
    if case.peer is not torch.optim.Adafactor:
        return case.options
    eps1, eps2 = case.options.get("eps", (None, 1e-3))
    return {**case.options, "eps": (torch.finfo(dtype).eps if eps1 is None else eps1, eps2)}


def errors(value: torch.Tensor, exact: torch.Tensor) -> tuple[float, float]:
    """The rms and the largest error, of the finite elements."""
    difference = (value.double() - exact)[value.isfinite()]
    return difference.square().mean().sqrt().item(), difference.abs().max().item()


def assert_close(a, a_params, b, b_params):
    for p, q in zip(a_params, b_params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        for key, value in states(b, q).items():
            torch.testing.assert_close(states(a, p)[key], value, rtol=1e-5, atol=1e-6)
