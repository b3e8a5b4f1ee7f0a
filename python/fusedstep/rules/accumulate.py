"""The sum of the gradients of micro-batches: here `p` is the sum, `scale` a gradient's weight."""

from __future__ import annotations

from .spec import Rule


def accumulate(p, g, scale):
    p = p + scale * g
    return (p,)


RULES = (Rule("accumulate", (), ("scale",), (accumulate,)),)
