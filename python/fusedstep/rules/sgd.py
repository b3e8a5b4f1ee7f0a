"""SGD: torch's, with the decay in the gradient, plain and with momentum. `look_ahead` is the
momentum if the step is Nesterov's, else 0."""

from __future__ import annotations

from typing import Any

from .decay import penalized
from .numbers import where
from .spec import LARGE_MODELS, Rule

SCALARS = ("penalty", "step_size")
WITH_MOMENTUM = (*SCALARS, "momentum", "one_minus_dampening", "look_ahead")


def sgd(p, g, penalty, step_size):
    p = p - step_size * penalized(g, p, penalty)
    return (p,)


def sgd_momentum(p, g, m, penalty, step_size, momentum, one_minus_dampening, look_ahead):
    g = penalized(g, p, penalty)
    m = momentum * m + one_minus_dampening * g
    p = p - step_size * where(look_ahead != 0.0, g + look_ahead * m, m)
    return p, m


def scalars(step: float, *, lr: float, weight_decay: float) -> dict[str, Any]:
    """Scalars of `sgd`. They are the same at every step."""
    return {"penalty": weight_decay, "step_size": lr}


def scalars_with_momentum(
    step: float,
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
) -> dict[str, Any]:
    """Scalars of `sgd_momentum` at `step` = 1, 2, ... The first gradient is the first momentum,
    without dampening."""
    return {
        "penalty": weight_decay,
        "step_size": lr,
        "momentum": momentum,
        "one_minus_dampening": where(step > 1.0, 1.0 - dampening, 1.0),
        "look_ahead": momentum if nesterov else 0.0,
    }


RULES = (
    Rule("sgd", (), SCALARS, (sgd,)),
    Rule("sgd_momentum", ("m",), WITH_MOMENTUM, (sgd_momentum,), dtypes=LARGE_MODELS),
)
