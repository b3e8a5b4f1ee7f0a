"""RMSprop: torch's, plain, with momentum, centered, and both. `m` is the momentum of the scaled
gradients, `a` the average of the gradients."""

from __future__ import annotations

from typing import Any

from .adamw import average
from .decay import penalized
from .numbers import div, maximum, sqrt
from .spec import Rule

SCALARS = ("alpha", "one_minus_alpha", "eps", "penalty", "step_size")
WITH_MOMENTUM = (*SCALARS, "momentum")


def scaled(g, v, eps):
    return div(g, sqrt(v) + eps)


def scaled_by_variance(g, v, a, eps):
    """The variance of equal gradients is 0, and its rounding error may be below 0."""
    return div(g, sqrt(maximum(v - a * a, 0.0)) + eps)


def rmsprop(p, g, v, alpha, one_minus_alpha, eps, penalty, step_size):
    g = penalized(g, p, penalty)
    v = average(v, g * g, alpha, one_minus_alpha)
    p = p - step_size * scaled(g, v, eps)
    return p, v


def rmsprop_momentum(p, g, v, m, alpha, one_minus_alpha, eps, penalty, step_size, momentum):
    g = penalized(g, p, penalty)
    v = average(v, g * g, alpha, one_minus_alpha)
    m = momentum * m + scaled(g, v, eps)
    p = p - step_size * m
    return p, v, m


def rmsprop_centered(p, g, v, a, alpha, one_minus_alpha, eps, penalty, step_size):
    g = penalized(g, p, penalty)
    v = average(v, g * g, alpha, one_minus_alpha)
    a = average(a, g, alpha, one_minus_alpha)
    p = p - step_size * scaled_by_variance(g, v, a, eps)
    return p, v, a


def rmsprop_centered_momentum(
    p, g, v, m, a, alpha, one_minus_alpha, eps, penalty, step_size, momentum
):
    g = penalized(g, p, penalty)
    v = average(v, g * g, alpha, one_minus_alpha)
    a = average(a, g, alpha, one_minus_alpha)
    m = momentum * m + scaled_by_variance(g, v, a, eps)
    p = p - step_size * m
    return p, v, m, a


def scalars(
    step: float, *, lr: float, alpha: float, eps: float, weight_decay: float
) -> dict[str, Any]:
    """Scalars of the rules without momentum. They are the same at every step."""
    return {
        "alpha": alpha,
        "one_minus_alpha": 1.0 - alpha,
        "eps": eps,
        "penalty": weight_decay,
        "step_size": lr,
    }


def scalars_with_momentum(
    step: float, *, lr: float, alpha: float, eps: float, weight_decay: float, momentum: float
) -> dict[str, Any]:
    """Scalars of the rules with momentum."""
    plain = scalars(step, lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay)
    return {**plain, "momentum": momentum}


RULES = (
    Rule("rmsprop", ("v",), SCALARS, (rmsprop,)),
    Rule("rmsprop_momentum", ("v", "m"), WITH_MOMENTUM, (rmsprop_momentum,)),
    Rule("rmsprop_centered", ("v", "a"), SCALARS, (rmsprop_centered,)),
    Rule("rmsprop_centered_momentum", ("v", "m", "a"), WITH_MOMENTUM, (rmsprop_centered_momentum,)),
)
