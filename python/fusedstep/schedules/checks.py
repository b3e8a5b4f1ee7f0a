"""Checks of a schedule's arguments. Each error names the schedule and the argument."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

from .. import check
from ..words import nearest


def not_negative(value: Any, argument: str, name: str) -> Any:
    """The value as a finite number of 0 or more; strings are converted."""
    value = finite(value, argument, name)
    if value < 0:
        raise ValueError(f"{name}: {argument} should be 0 or more but is: {value}")
    return value


def finite(value: Any, argument: str, name: str) -> Any:
    """The value as a finite number; strings are converted."""
    value = check.number(value, f"{name}: {argument}")
    if not isinstance(value, Real):
        raise TypeError(f"{name}: {argument} should be a number but is: {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name}: {argument} should be finite but is: {value}")
    return value


def choice(value: Any, argument: str, name: str, choices: Iterable[str]) -> None:
    """Raises unless the value is one of the choices."""
    known = list(choices)
    if value not in known:
        listed = ", ".join(map(repr, known))
        raise ValueError(
            f"{name}: {argument} should be one of {listed} but is: {value!r}{nearest(value, known)}"
        )
