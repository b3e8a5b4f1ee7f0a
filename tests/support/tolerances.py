"""How far results may be apart where they are not the same bits."""

import torch

from tests.support.cases import Case, states

FLOOR = 4  # ulps, for the reason in contracts/test_peers.py


def exact_options(case: Case, dtype: torch.dtype) -> dict:
    """torch's Adafactor takes eps[0] from the dtype: the exact run has to take that of `dtype`."""
    if case.peer is not torch.optim.Adafactor:
        return case.options
    eps1, eps2 = case.options.get("eps", (None, 1e-3))
    return {**case.options, "eps": (torch.finfo(dtype).eps if eps1 is None else eps1, eps2)}


def errors(value: torch.Tensor, exact: torch.Tensor) -> tuple[float, float]:
    """Root of the mean square, and largest, of the finite elements."""
    difference = (value.double() - exact)[value.isfinite()]
    return difference.square().mean().sqrt().item(), difference.abs().max().item()


def assert_close(a, a_params, b, b_params):
    for p, q in zip(a_params, b_params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        for key, value in states(b, q).items():
            torch.testing.assert_close(states(a, p)[key], value, rtol=1e-5, atol=1e-6)
