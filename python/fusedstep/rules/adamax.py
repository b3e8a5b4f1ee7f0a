"""Adamax: torch's, with the decay in the gradient. `w` is a maximum of gradients that decays."""

from __future__ import annotations

from typing import Any

from .adamw import average
from .decay import penalized
from .numbers import div, maximum
from .spec import Rule

SCALARS = ("beta1", "one_minus_beta1", "beta2", "eps", "penalty", "step_size")


def adamax(p, g, m, w, beta1, one_minus_beta1, beta2, eps, penalty, step_size):
    g = penalized(g, p, penalty)
    m = average(m, g, beta1, one_minus_beta1)
    w = maximum(beta2 * w, maximum(g, -g) + eps)
    p = p - step_size * div(m, w)
    return p, m, w


def scalars(
    step: float, *, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float
) -> dict[str, Any]:
    """Scalars of `adamax` at `step` = 1, 2, ..."""
    return {
        "beta1": beta1,
        "one_minus_beta1": 1.0 - beta1,
        "beta2": beta2,
        "eps": eps,
        "penalty": weight_decay,
        "step_size": lr / (1.0 - beta1**step),
    }


RULES = (Rule("adamax", ("m", "w"), SCALARS, (adamax,)),)
