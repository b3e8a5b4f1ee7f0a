"""NAdam: torch's, with the decay in the gradient or decoupled, as `penalty` or `decay`.

Its momentum mu grows from step to step, and each parameter remembers the product of its mus.
"""

from __future__ import annotations

from typing import Any

from .adamw import average
from .decay import decayed, penalized, signed_decay
from .numbers import div, sqrt
from .spec import Rule

SCALARS = (
    "beta1",
    "one_minus_beta1",
    "beta2",
    "one_minus_beta2",
    "eps",
    "decay",
    "penalty",
    "size_of_g",
    "size_of_m",
    "inv_root_bias2",
)


def nadam(
    p,
    g,
    m,
    v,
    beta1,
    one_minus_beta1,
    beta2,
    one_minus_beta2,
    eps,
    decay,
    penalty,
    size_of_g,
    size_of_m,
    inv_root_bias2,
):
    g = penalized(g, p, penalty)
    m = average(m, g, beta1, one_minus_beta1)
    v = average(v, g * g, beta2, one_minus_beta2)
    u = div(size_of_g * g + size_of_m * m, sqrt(v) * inv_root_bias2 + eps)
    p = decayed(p, decay) - u
    return p, m, v


def mu_at(step: float, beta1: float, momentum_decay: float) -> Any:
    """The momentum of a step."""
    return beta1 * (1.0 - 0.5 * 0.96 ** (step * momentum_decay))


def scalars(
    step: float,
    *,
    mu_product: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    momentum_decay: float,
    decoupled: bool,
) -> dict[str, Any]:
    """Scalars of `nadam` at `step` = 1, 2, ... `mu_product` is that of all steps up to this one."""
    mu = mu_at(step, beta1, momentum_decay)
    mu_next = mu_at(step + 1.0, beta1, momentum_decay)
    return {
        "beta1": beta1,
        "one_minus_beta1": 1.0 - beta1,
        "beta2": beta2,
        "one_minus_beta2": 1.0 - beta2,
        "eps": eps,
        "decay": signed_decay(lr * weight_decay) if decoupled else 0.0,
        "penalty": 0.0 if decoupled else weight_decay,
        "size_of_g": div(lr * (1.0 - mu), 1.0 - mu_product),
        "size_of_m": div(lr * mu_next, 1.0 - mu_product * mu_next),
        "inv_root_bias2": 1.0 / sqrt(1.0 - beta2**step),
    }


RULES = (Rule("nadam", ("m", "v"), SCALARS, (nadam,)),)
