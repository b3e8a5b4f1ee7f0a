"""Checks of what a schedule is given, each with an error that names schedule and argument."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

from .. import check


def count(value: Any, argument: str, name: str) -> Any:
    """A number of steps or cycles: 0 or more."""
    value = finite(value, argument, name)
    if value < 0:
        raise ValueError(f"{name}: {argument} should be 0 or more but is: {value}")
    return value


def finite(value: Any, argument: str, name: str) -> Any:
    """A finite number, which may come as a string."""
    value = check.number(value, f"{name}: {argument}")
    if not isinstance(value, Real):
        raise TypeError(f"{name}: {argument} should be a number but is: {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name}: {argument} should be finite but is: {value}")
    return value


def choice(value: Any, argument: str, name: str, choices: Iterable[str]) -> None:
    """Refuses what is not one of the choices."""
    known = list(choices)
    if value not in known:
        listed = ", ".join(map(repr, known))
        raise ValueError(
            f"{name}: {argument} should be one of {listed} but is: {value!r}{nearest(value, known)}"
        )


def nearest(value: Any, choices: Iterable[str]) -> str:
    """` (did you mean ...?)`, or nothing if no choice is like the value."""
    same_case = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(str(value).lower(), same_case, n=1)
    return f" (did you mean {same_case[found[0]]!r}?)" if found else ""
