"""Docstrings that share paragraphs: what an argument means is written once for all that take it."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T", bound=Callable[..., Any])

TITLE = "\nArguments:\n"
EXAMPLE = "\nExample:"
# An entry begins with one or several names, four columns inside the section.
ENTRY = re.compile(r"^ {4}(?=\w+(?:, \w+)*: )", re.MULTILINE)


def describes(paragraphs: Mapping[str, str]) -> Callable[[T], T]:
    """A decorator of classes and functions: their docstrings get these paragraphs on those of their
    arguments that they do not describe themselves. Entries stand in the order of the signature. The
    docstring loses its indentation, as with Python 3.13 all docstrings do."""

    def decorated(described: T) -> T:
        text = described.__doc__
        if text is not None:  # else it is `python -OO`
            arguments = [*inspect.signature(described).parameters]
            described.__doc__ = filled(inspect.cleandoc(text), arguments, paragraphs)
        return described

    return decorated


def filled(text: str, arguments: list[str], paragraphs: Mapping[str, str]) -> str:
    """The docstring with an entry for each argument, if it or `paragraphs` has one."""
    head, example, rest = text.partition(EXAMPLE)
    head, _, own = head.partition(TITLE)
    entries = {}
    for entry in ENTRY.split(own)[1:]:
        names = entry.partition(":")[0].split(", ")
        entries[names[0]] = " " * 4 + entry.rstrip() + "\n"
        arguments = [name for name in arguments if name not in names[1:]]
    for name in arguments:
        if name in paragraphs and name not in entries:
            entries[name] = wrapped(name, paragraphs[name])
    if unknown := entries.keys() - set(arguments):
        raise ValueError(
            f"the docstring describes {unknown.pop()!r}, which is no argument: {head!r}"
        )
    ordered = sorted(entries, key=lambda name: arguments.index(name))
    section = TITLE + "".join(entries[name] for name in ordered) if entries else ""
    return f"{head.rstrip()}\n{section}{example}{rest}"


def wrapped(name: str, paragraph: str) -> str:
    """An entry of the section on arguments."""
    lines = textwrap.wrap(
        f"{name}: {paragraph}",
        width=96,
        initial_indent=" " * 4,
        subsequent_indent=" " * 8,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "".join(f"{line}\n" for line in lines)
