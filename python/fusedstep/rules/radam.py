"""RAdam: torch's, with the decay in the gradient or decoupled, as `penalty` or `decay`.

In the first steps the second moment says too little, and the update does not divide by it.
"""

from __future__ import annotations

from typing import Any

from .adamw import average
from .decay import decayed, penalized, signed_decay
from .numbers import div, sqrt, where
from .spec import Rule

SCALARS = (
    "beta1",
    "one_minus_beta1",
    "beta2",
    "one_minus_beta2",
    "eps",
    "decay",
    "penalty",
    "step_size",
    "is_adaptive",  # 1, or 0 in the first steps
)


def radam(
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
    step_size,
    is_adaptive,
):
    g = penalized(g, p, penalty)
    m = average(m, g, beta1, one_minus_beta1)
    v = average(v, g * g, beta2, one_minus_beta2)
    p = decayed(p, decay) - step_size * div(m, where(is_adaptive > 0.0, sqrt(v) + eps, 1.0))
    return p, m, v


def scalars(
    step: float,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> dict[str, Any]:
    """Scalars of `radam` at `step` = 1, 2, ... `length` is that of the moving average whose
    variance `v` has (rho in the paper); above 5 its variance is finite."""
    bias2 = 1.0 - beta2**step
    longest = 2.0 / (1.0 - beta2) - 1.0
    length = longest - 2.0 * step * beta2**step / bias2
    squared = div(
        (length - 4.0) * (length - 2.0) * longest, (longest - 4.0) * (longest - 2.0) * length
    )
    rectified = sqrt(squared) * sqrt(bias2)
    return {
        "beta1": beta1,
        "one_minus_beta1": 1.0 - beta1,
        "beta2": beta2,
        "one_minus_beta2": 1.0 - beta2,
        "eps": eps,
        "decay": signed_decay(lr * weight_decay) if decoupled else 0.0,
        "penalty": 0.0 if decoupled else weight_decay,
        "step_size": lr / (1.0 - beta1**step) * where(length > 5.0, rectified, 1.0),
        "is_adaptive": where(length > 5.0, 1.0, 0.0),
    }


RULES = (Rule("radam", ("m", "v"), SCALARS, (radam,)),)
