"""A PTX module: its entries, functions and variables. The text is searched once for all kernels."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .faults import Fault
from .syntax import literal
from .text import matching_braces, outside_braces, split_list

HEAD = re.compile(
    r"\.(?P<kind>entry|func)\s+(?:\((?P<results>[^)]*)\)\s*)?(?P<name>[\w$]+)\s*"
    r"(?:\((?P<params>[^)]*)\))?\s*(?P<directives>(?:\.\w+\s*[\d, ]*\s*)*)\{"
)
VARIABLE = re.compile(
    r"\.(?:global|const)(?:\s+\.align\s+\d+)?\s+\.[bsuf](?P<bits>\d+)\s+(?P<name>[\w$]+)"
    r"(?:\[(?P<count>\d+)\])?\s*(?:=\s*(?P<values>\{[^}]*\}|[^;]+))?\s*;"
)
FILE = re.compile(r"\.file\s+(\d+)\s+\"([^\"]*)\"")


class Function(NamedTuple):
    """An entry, or a function that an entry calls."""

    kind: str
    name: str
    results: list[str]  # declarations
    params: list[str]
    limits: dict[str, int]  # .maxntid and .reqntid, as numbers of threads
    begin: int  # where it begins in the text
    start: int  # where its body begins

    @property
    def formal(self) -> list[str]:
        """The names of its results and parameters."""
        return [
            re.sub(r"\[\d*\]$", "", declaration).split()[-1]
            for declaration in self.results + self.params
        ]


class Module:
    """The text without comments, and an index of it."""

    def __init__(self, ptx: str) -> None:
        text = re.sub(r"/\*.*?\*/", " ", ptx, flags=re.S)
        self.text = re.sub(r"//[^\n]*", "", text)
        self.functions: dict[str, Function] = {}
        for match in HEAD.finditer(self.text):
            self.functions[match["name"]] = Function(
                match["kind"],
                match["name"],
                split_list(match["results"] or ""),
                split_list(match["params"] or ""),
                limits_of(match["directives"]),
                match.start(),
                match.end(),
            )
        self.files = {match[1]: match[2] for match in FILE.finditer(self.text)}
        declared = outside_braces(self.text)
        self.shared = re.findall(r"\.shared\b[^;{}]*(?=;)", declared)
        # Initial values are in braces, so variables are searched for in the full text.
        self._variables = {match["name"]: match for match in VARIABLE.finditer(self.text)}
        self._tables: dict[str, NDArray[Any]] = {}

    @property
    def entries(self) -> list[str]:
        return [name for name, one in self.functions.items() if one.kind == "entry"]

    def function(self, kind: str, name: str | None) -> Function:
        for one in self.functions.values():
            if one.kind == kind and name in (None, one.name):
                return one
        raise Fault(f"no {kind} {name or ''} in this module")

    def body(self, function: Function) -> str:
        return matching_braces(self.text, function.start)

    def alone(self, name: str) -> str:
        """The text of one entry, with the declarations of shared memory. It must not call
        functions."""
        one = self.functions[name]
        shared = "".join(f"{declaration};\n" for declaration in self.shared)
        return f"{shared}{self.text[one.begin : one.start]}{self.body(one)}}}\n"

    def table(self, name: str) -> NDArray[Any] | None:
        """A variable as an array, with its initial values and then zeros. All kernels share it."""
        if name not in self._tables:
            if name not in self._variables:
                return None
            self._tables[name] = table_of(self._variables[name])
        return self._tables[name]


def limits_of(directives: str) -> dict[str, int]:
    """How many threads a launch may have (.maxntid) or must have (.reqntid)."""
    limits = {}
    for name, sizes in re.findall(r"\.(maxntid|reqntid)\s+([\d, ]+)", directives):
        limits[name] = int(np.prod([int(size) for size in sizes.split(",")]))
    return limits


def table_of(declared: re.Match[str]) -> NDArray[Any]:
    table = np.zeros(int(declared["count"] or 1), f"u{int(declared['bits']) // 8}")
    values = split_list((declared["values"] or "").strip().strip("{}"))
    mask = (1 << int(declared["bits"])) - 1
    for place, text in enumerate(values):
        value = literal(text)
        if value is None:
            raise Fault(f"initial value {text} of {declared['name']} not understood")
        table[place] = value.bits & mask
    return table
