"""What a rule is: its functions, the letters of its states, and its host scalars."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """One update rule.

    `functions` are the rule's texts; the first one is the elementwise update. An argument that is
    one of `scalars` is a host scalar, constant over a launch's row; every other argument is a
    value. `states` are the letters of the states that are as large as the parameter.
    `factored` rules also keep `row` and `col`, and sum over the tensor before they can update it.
    Rules of one `family` share all but their update, and are one struct in C++.
    """

    name: str
    states: tuple[str, ...]
    scalars: tuple[str, ...]
    functions: tuple[Callable[..., object], ...]
    family: str = ""
    factored: bool = False
