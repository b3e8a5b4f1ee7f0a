"""The sum of the gradients of micro-batches: here `p` is the sum, `scale` a gradient's weight."""

from __future__ import annotations

from .spec import Rule


def accumulate(p, g, scale):
    p = p + scale * g
    return (p,)


# A sum is no narrower than float32.
SUMS = (("float32", "float32"), ("float32", "bfloat16"))

RULES = (Rule("accumulate", (), ("scale",), (accumulate,), dtypes=SUMS),)
