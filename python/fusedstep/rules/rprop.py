"""Rprop: torch's. `q` is the gradient of the step before, `z` the size of each number's step."""

from __future__ import annotations

from typing import Any

from .lion import against
from .numbers import maximum, minimum, where
from .spec import Rule

SCALARS = ("shrink", "grow", "smallest", "largest")


def rprop(p, g, q, z, shrink, grow, smallest, largest):
    x = g * q
    z = minimum(maximum(z * where(x > 0.0, grow, where(x < 0.0, shrink, 1.0)), smallest), largest)
    q = where(x < 0.0, 0.0, g)
    p = against(p, q, z)
    return p, q, z


def scalars(
    step: float, *, etas: tuple[float, float], step_sizes: tuple[float, float]
) -> dict[str, Any]:
    """Scalars of `rprop`. They are the same at every step."""
    return {
        "shrink": etas[0],
        "grow": etas[1],
        "smallest": step_sizes[0],
        "largest": step_sizes[1],
    }


RULES = (Rule("rprop", ("q", "z"), SCALARS, (rprop,)),)
