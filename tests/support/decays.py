"""Every rule with a weight decay, with decays so strong that p - decay * p would cancel."""

from __future__ import annotations

from dataclasses import replace

from .cases import CASES, FIXED, Case

LR = 1e-3
_UNSCALED = {"lr": LR, **FIXED}
_OPTIONS = {
    "adamw": {"lr": LR},
    "adamw-amsgrad": {"lr": LR, "amsgrad": True},
    "old-adamw": {"lr": LR},
    "old-adam-weight-decay": {"lr": LR},
    "adafactor": {"lr": LR},
    "hf-adafactor": _UNSCALED,
    "hf-adafactor-scaled": {"lr": LR, "relative_step": False},  # rms(p) scales the decay too
    "hf-adafactor-momentum": {**_UNSCALED, "beta1": 0.9},
}
_CASES = {case.name: case for case in CASES}


def with_decay(name: str, decay: float) -> Case:
    """A case in which a step takes the share `decay` off a parameter, if its rms is 1."""
    options = {**_OPTIONS[name], "weight_decay": decay / LR}
    return replace(_CASES[name], name=f"{name}, decay {decay}", options=options)


RULES_WITH_DECAY = list(_OPTIONS)
STRONG = [with_decay(name, decay) for name in _OPTIONS for decay in (0.7, 1.0)]
