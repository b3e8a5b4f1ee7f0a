"""Looks up names in nested scopes: registers, and variables that are passed to functions."""

from __future__ import annotations

import re

from .faults import Fault
from .syntax import VARIABLE, Layout, Register
from .text import split_list


class Scopes:
    """Registers by name, in nested scopes. Their numbers are unique across all scopes."""

    def __init__(self) -> None:
        self.widths: list[int] = []
        self.names: dict[int, str] = {}
        self._registers: list[dict[str, int]] = [{}]
        self._passed: list[dict[str, str]] = [{}]
        self._variables = 0

    def enter(self) -> None:
        self._registers.append({})
        self._passed.append({})

    def leave(self) -> None:
        self._registers.pop()
        self._passed.pop()

    def declare_registers(self, statement: str) -> None:
        match = re.match(r"\.reg\s+\.(pred|[bsuf](\d+))\s+(.*)$", statement, re.S)
        if match is None:
            raise Fault(f"declaration not understood: {statement}")
        width = int(match[2]) if match[2] else 1
        for name in split_list(match[3]):
            family = re.match(r"([%\w$]+)<(\d+)>$", name)
            for one in [f"{family[1]}{i}" for i in range(int(family[2]))] if family else [name]:
                self._registers[-1][one] = len(self.widths)
                self.names[len(self.widths)] = one
                self.widths.append(width)

    def register(self, name: str) -> Register | None:
        for scope in reversed(self._registers):
            if name in scope:
                return Register(scope[name], self.widths[scope[name]])
        return None

    def declare_passed(self, declaration: str, local: Layout) -> None:
        """Declares a .param variable of a body. It is put in local memory, which is per thread."""
        match = VARIABLE.match(declaration)
        if match is None:
            raise Fault(f"declaration not understood: {declaration}")
        element = int(match["bits"]) // 8
        size = element * int(match["count"] or 1)
        self._variables += 1
        unique = f"{match['name']} {self._variables}"
        local.place(unique, size, int(match["align"] or element))
        self._passed[-1][match["name"]] = unique

    def passed(self, name: str) -> str | None:
        """The local variable that stands for a .param variable of a body."""
        for scope in reversed(self._passed):
            if name in scope:
                return scope[name]
        return None

    def name_passed(self, formal: str, unique: str) -> None:
        """Within a function, makes the name of its parameter mean what the caller passed."""
        self._passed[-1][formal] = unique
