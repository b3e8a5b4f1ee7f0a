"""The named operations of rule texts on Python floats. They give IEEE results and never raise."""

from __future__ import annotations

import math


def div(a: float, b: float) -> float:
    if b != 0.0:
        return a / b
    return math.nan if a == 0.0 or a != a else math.copysign(math.inf, a) * math.copysign(1.0, b)


def sqrt(x: float) -> float:
    return math.sqrt(x) if x >= 0.0 else math.nan


def maximum(a: float, b: float) -> float:
    """The larger one; nan if either is nan."""
    return a if a > b or a != a else b


def minimum(a: float, b: float) -> float:
    """The smaller one; nan if either is nan."""
    return a if a < b or a != a else b


def where(condition: bool, a: float, b: float) -> float:
    return a if condition else b
