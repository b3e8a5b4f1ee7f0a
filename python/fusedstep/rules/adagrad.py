"""Adagrad: torch's, with the decay in the gradient. `v` is the sum of all squared gradients."""

from __future__ import annotations

from typing import Any

from .decay import penalized
from .numbers import div, sqrt
from .spec import Rule


def adagrad(p, g, v, eps, penalty, step_size):
    g = penalized(g, p, penalty)
    v = v + g * g
    p = p - step_size * div(g, sqrt(v) + eps)
    return p, v


def scalars(
    step: float, *, lr: float, lr_decay: float, eps: float, weight_decay: float
) -> dict[str, Any]:
    """Scalars of `adagrad` at `step` = 1, 2, ..."""
    return {
        "eps": eps,
        "penalty": weight_decay,
        "step_size": lr / (1.0 + (step - 1.0) * lr_decay),
    }


RULES = (Rule("adagrad", ("v",), ("eps", "penalty", "step_size"), (adagrad,)),)
