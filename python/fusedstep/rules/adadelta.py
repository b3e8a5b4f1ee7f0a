"""Adadelta: torch's, with the decay in the gradient. `a` is the average of the squared updates."""

from __future__ import annotations

from typing import Any

from .adamw import average
from .decay import penalized
from .numbers import div, sqrt
from .spec import Rule


def adadelta(p, g, v, a, rho, one_minus_rho, eps, penalty, step_size):
    g = penalized(g, p, penalty)
    v = average(v, g * g, rho, one_minus_rho)
    u = div(sqrt(a + eps), sqrt(v + eps)) * g
    a = average(a, u * u, rho, one_minus_rho)
    p = p - step_size * u
    return p, v, a


def scalars(
    step: float, *, lr: float, rho: float, eps: float, weight_decay: float
) -> dict[str, Any]:
    """Scalars of `adadelta`. They are the same at every step."""
    return {
        "rho": rho,
        "one_minus_rho": 1.0 - rho,
        "eps": eps,
        "penalty": weight_decay,
        "step_size": lr,
    }


SCALARS = ("rho", "one_minus_rho", "eps", "penalty", "step_size")
RULES = (Rule("adadelta", ("v", "a"), SCALARS, (adadelta,)),)
