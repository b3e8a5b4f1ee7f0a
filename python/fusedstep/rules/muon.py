"""Muon: torch's. `muon_average` comes before the products of matrices: its `p` is where u goes.
`muon_descend` comes after them: its `g` is what they made of u."""

from __future__ import annotations

import math
from typing import Any

from .adamw import average
from .decay import decayed, signed_decay
from .spec import Rule


def muon_average(p, g, m, momentum, one_minus_momentum, share, one_minus_share):
    m = average(m, g, momentum, one_minus_momentum)
    p = average(m, g, share, one_minus_share)
    return p, m


def muon_descend(p, g, decay, step_size):
    p = decayed(p, decay) - step_size * g
    return (p,)


def average_scalars(step: float, *, momentum: float, nesterov: bool) -> dict[str, Any]:
    """Scalars of `muon_average`. They are the same at every step."""
    share = momentum if nesterov else 1.0
    return {
        "momentum": momentum,
        "one_minus_momentum": 1.0 - momentum,
        "share": share,
        "one_minus_share": 1.0 - share,
    }


def descend_scalars(step: float, *, lr: float, weight_decay: float, ratio: float) -> dict[str, Any]:
    """Scalars of `muon_descend`. They are the same at every step."""
    return {"decay": signed_decay(lr * weight_decay), "step_size": lr * ratio}


def ratio_of(adjust_lr_fn: str | None, rows: int, cols: int) -> float:
    """What the learning rate of a matrix is multiplied by."""
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, cols))
    if adjust_lr_fn == "spectral_unclamped":
        return math.sqrt(rows / cols)
    return math.sqrt(max(1.0, rows / cols))


AVERAGE = ("momentum", "one_minus_momentum", "share", "one_minus_share")
AVERAGE_DTYPES = (
    ("bfloat16", "float32", "float32"),
    ("bfloat16", "bfloat16", "bfloat16"),
    ("bfloat16", "bfloat16", "float32"),
)
DESCEND_DTYPES = (("float32", "bfloat16"), ("bfloat16", "bfloat16"))

RULES = (
    Rule("muon_average", ("m",), AVERAGE, (muon_average,), dtypes=AVERAGE_DTYPES),
    Rule("muon_descend", (), ("decay", "step_size"), (muon_descend,), dtypes=DESCEND_DTYPES),
)
