"""Lion: the sign of a momentum, with decoupled decay (Chen et al. 2023, arXiv:2302.06675)."""

from __future__ import annotations

from typing import Any

from .adamw import average
from .decay import decayed, signed_decay
from .numbers import where
from .spec import LARGE_MODELS, Rule


def against(p, x, size):
    """p after a step of this size against the sign of x; without a step if x is 0 or nan."""
    return where(x > 0.0, p - size, where(x < 0.0, p + size, p))


def lion(p, g, m, beta1, one_minus_beta1, beta2, one_minus_beta2, decay, step_size):
    u = average(m, g, beta1, one_minus_beta1)
    p = against(decayed(p, decay), u, step_size)
    m = average(m, g, beta2, one_minus_beta2)
    return p, m


def scalars(
    step: float, *, lr: float, beta1: float, beta2: float, weight_decay: float
) -> dict[str, Any]:
    """Scalars of `lion`. They are the same at every step."""
    return {
        "beta1": beta1,
        "one_minus_beta1": 1.0 - beta1,
        "beta2": beta2,
        "one_minus_beta2": 1.0 - beta2,
        "decay": signed_decay(lr * weight_decay),
        "step_size": lr,
    }


SCALARS = ("beta1", "one_minus_beta1", "beta2", "one_minus_beta2", "decay", "step_size")
RULES = (Rule("lion", ("m",), SCALARS, (lion,), dtypes=LARGE_MODELS, in_blocks=True),)
