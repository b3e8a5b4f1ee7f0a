"""Names and settings as users write them: the nearest known name, strings that are numbers."""

from __future__ import annotations

import contextlib
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

VALUES = {"true": True, "false": False, "none": None, "null": None}
# Names that other packages have for arguments, and that are spelled too differently to be near.
ALIASES = {"learning_rate": "lr", "epsilon": "eps", "wd": "weight_decay"}


def nearest(value: Any, choices: Iterable[str]) -> str:
    """` (did you mean ...?)`, or an empty string if no choice is close to the value."""
    same_case = {choice.lower(): choice for choice in choices}
    low = str(value).lower()
    found = [ALIASES.get(low, "")] if ALIASES.get(low) in same_case else []
    found += difflib.get_close_matches(low, same_case, n=1)
    return f" (did you mean {same_case[found[0]]!r}?)" if found else ""


def plain(name: str) -> str:
    """A name without what may be written in several ways: only letters and digits, in lower case.

    Example:
        >>> plain("hf.Adam_W")
        'hfadamw'
    """
    return "".join(letter for letter in name.lower() if letter.isalnum())


def read(value: Any) -> Any:
    """Converts strings from a config or a command line: "1e-3" is 0.001, "none" is None. YAML takes
    1e-3 for a string."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(read, value))
    if not isinstance(value, str):
        return value
    if value.lower() in VALUES:
        return VALUES[value.lower()]
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(value)
    return value


def arguments_of(make: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The arguments that a class or a function takes, by name."""
    return inspect.signature(make).parameters


def check_known(given: Iterable[str], known: Iterable[str], label: str) -> None:
    """Refuses an argument that is not known. `label` says what has the arguments."""
    choices = list(known)
    for key in given:
        if key not in choices:
            raise TypeError(
                f"{label} has no argument {key!r}{nearest(key, choices)}. "
                f"Its arguments are: {', '.join(choices) or 'none'}."
            )


def one_of_two(name: str, value: Any, default: Any, other_name: str, other: Any, label: str) -> Any:
    """The value of an argument that has two names. `default` is the object that the signature has
    for the first one: if `value` is another one, even of the same number, it was given."""
    if other is None:
        return value
    if value is not default:
        raise TypeError(
            f"{label}: {name}={value!r} and {other_name}={other!r} are one argument with two "
            "names. Give one of them."
        )
    return other
