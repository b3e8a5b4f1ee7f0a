"""Adam: torch's, with the decay in the gradient, and the same with amsgrad. With decoupled decay it
is `adamw`."""

from __future__ import annotations

from typing import Any

from .adamw import average, descend
from .decay import penalized
from .numbers import maximum, sqrt
from .spec import LARGE_MODELS, Rule

SCALARS = (
    "beta1",
    "one_minus_beta1",
    "beta2",
    "one_minus_beta2",
    "eps",
    "penalty",
    "step_size",
    "inv_root_bias2",
)


def adam(
    p,
    g,
    m,
    v,
    beta1,
    one_minus_beta1,
    beta2,
    one_minus_beta2,
    eps,
    penalty,
    step_size,
    inv_root_bias2,
):
    g = penalized(g, p, penalty)
    m = average(m, g, beta1, one_minus_beta1)
    v = average(v, g * g, beta2, one_minus_beta2)
    p = descend(p, m, v, eps, step_size, inv_root_bias2)
    return p, m, v


def adam_amsgrad(
    p,
    g,
    m,
    v,
    w,
    beta1,
    one_minus_beta1,
    beta2,
    one_minus_beta2,
    eps,
    penalty,
    step_size,
    inv_root_bias2,
):
    g = penalized(g, p, penalty)
    m = average(m, g, beta1, one_minus_beta1)
    v = average(v, g * g, beta2, one_minus_beta2)
    w = maximum(w, v)
    p = descend(p, m, w, eps, step_size, inv_root_bias2)
    return p, m, v, w


def scalars(
    step: float, *, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float
) -> dict[str, Any]:
    """Scalars of `adam` and `adam_amsgrad` at `step` = 1, 2, ..."""
    return {
        "beta1": beta1,
        "one_minus_beta1": 1.0 - beta1,
        "beta2": beta2,
        "one_minus_beta2": 1.0 - beta2,
        "eps": eps,
        "penalty": weight_decay,
        "step_size": lr / (1.0 - beta1**step),
        "inv_root_bias2": 1.0 / sqrt(1.0 - beta2**step),
    }


RULES = (
    Rule("adam", ("m", "v"), SCALARS, (adam,), dtypes=LARGE_MODELS, in_blocks=True),
    Rule("adam_amsgrad", ("m", "v", "w"), SCALARS, (adam_amsgrad,)),
)
