"""Sums the gradients of micro-batches: here `p` is the sum and `scale` the gradient's weight."""

from __future__ import annotations

from .spec import Rule


def accumulate(p, g, scale):
    p = p + scale * g
    return (p,)


# A sum is float32 or wider.
SUMS = (("float32", "float32"), ("float32", "bfloat16"))

RULES = (Rule("accumulate", (), ("scale",), (accumulate,), dtypes=SUMS, only_dtypes=True),)
