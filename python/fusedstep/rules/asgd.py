"""ASGD: torch's averaged SGD, with the decay in the gradient. `a` is the average of p.

Each parameter remembers the learning rate `eta` and the weight `mu` of its next step.
"""

from __future__ import annotations

from typing import Any

from .decay import decayed, penalized, signed_decay
from .numbers import div, maximum, where
from .spec import Rule


def asgd(p, g, a, decay, penalty, eta, mu):
    g = penalized(g, p, penalty)
    p = decayed(p, decay) - eta * g
    a = where(mu == 1.0, p, a + mu * (p - a))
    return p, a


def scalars(
    step: float, *, eta: float, mu: float, lambd: float, weight_decay: float
) -> dict[str, Any]:
    """Scalars of `asgd`."""
    return {
        "decay": signed_decay(lambd * eta),
        "penalty": weight_decay,
        "eta": eta,
        "mu": mu,
    }


def after(step: float, *, lr: float, lambd: float, alpha: float, t0: float) -> dict[str, Any]:
    """eta and mu after `step`: those of the next one."""
    return {
        "eta": div(lr, (1.0 + lambd * lr * step) ** alpha),
        "mu": div(1.0, maximum(1.0, step - t0)),
    }


RULES = (Rule("asgd", ("a",), ("decay", "penalty", "eta", "mu"), (asgd,)),)
