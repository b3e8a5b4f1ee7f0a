"""Weight decay, for every rule that has it. Decoupled decay: p becomes (1 - decay) p. A penalty is
added to the gradient instead: g becomes g + penalty p.

Rounding the factor 1 - decay to float32 makes p drift (4e-6 after 300 steps with decay 1e-5), so
the rules compute `p - decay * p`. That cancels if decay is near 1. From 0.5 on, the factor in
float64 is as exact as decay, so `signed_decay` returns minus the factor.
"""

from __future__ import annotations

from .numbers import where


def decayed(p, decay):
    """p after decay; a negative decay is minus the factor. If p is infinite the difference is nan,
    even without decay: p stays as it is, as with the factor."""
    whole = where(decay < 0.0, 0.0, 1.0)
    kept = whole * p - decay * p
    return where(kept == kept, kept, p)


def signed_decay(decay):
    """The decay that `decayed` takes: decay - 1 if decay is at least 0.5 and below 1."""
    minus_kept = decay - 1.0
    return where(decay < 0.5, decay, where(decay < 1.0, minus_kept, decay))


def penalized(g, p, penalty):
    """g with the gradient of penalty / 2 p^2. Without a penalty an infinite p must not make nan."""
    return where(penalty != 0.0, g + penalty * p, g)
