"""Decoupled weight decay, for every rule that has it: p becomes (1 - decay) p.

The factor 1 - decay, rounded to float32, would drift by its own rounding, step after step (4e-6
after 300 steps with decay 1e-5), so it is `p - decay * p` that is computed. That cancels where
decay is near 1. From one half on the factor is small, and computed in float64 it is as exact as
decay is: `signed_decay` then gives minus the factor.
"""

from __future__ import annotations

from .numbers import where


def decayed(p, decay):
    """Of an infinite p the difference is nan, without decay too: p then stays what it was, as it
    would by the factor."""
    kept = where(decay < 0.0, -0.0, p) - decay * p
    return where(kept == kept, kept, p)


def signed_decay(decay):
    """A decay as `decayed` takes it: minus what is kept of p, from one half on and below 1."""
    minus_kept = decay - 1.0
    return where(decay < 0.5, decay, where(decay < 1.0, minus_kept, decay))
