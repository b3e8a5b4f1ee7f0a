"""Reads the mangled names of kernels: the function and its template arguments."""

from __future__ import annotations

import re
from typing import NamedTuple

SOURCE_NAME = re.compile(r"(\d+)")
LITERAL = re.compile(r"L(?:(?P<kind>[a-z])|N[\w]*?E|\d+\w+?)(?P<negative>n?)(?P<value>\d+)E")
TYPES = {"f": "float", "d": "double", "i": "int", "l": "long", "b": "bool"}


class Name(NamedTuple):
    """`scope::function<arguments>`."""

    function: str
    arguments: tuple[int | bool | str, ...] = ()

    def __str__(self) -> str:
        short = self.function.rpartition("::")[2]
        given = ", ".join(str(one).lower() for one in self.arguments)
        return f"{short}<{given}>" if self.arguments else short


def parse(mangled: str) -> Name:
    """Reads the names of functions in namespaces whose template arguments are integers, booleans,
    enumerators or plain types. Kernels have no others."""
    if not mangled.startswith("_Z"):
        return Name(mangled)
    nested = mangled.startswith("_ZN")
    place, parts = 2 + nested, []
    while (found := SOURCE_NAME.match(mangled, place)) and (nested or not parts):
        end = found.end() + int(found[1])
        parts.append(mangled[found.end() : end])
        place = end
    arguments: list[int | bool | str] = []
    if mangled[place : place + 1] == "I":
        place += 1
        while mangled[place] != "E":
            literal = LITERAL.match(mangled, place)
            if literal is not None:
                value = int(literal["value"]) * (-1 if literal["negative"] else 1)
                arguments.append(bool(value) if literal["kind"] == "b" else value)
                place = literal.end()
            elif mangled[place] in TYPES:
                arguments.append(TYPES[mangled[place]])
                place += 1
            else:
                raise ValueError(f"{mangled}: template argument at {place} not understood")
    return Name("::".join(parts), tuple(arguments))
