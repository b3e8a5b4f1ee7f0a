"""The tables of docs/api.md: every public name with the first sentence of its docstring.

`python docs/names.py` writes them; a test fails if they are stale. The site puts each name's whole
docstring below them.
"""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

PAGE = Path(__file__).parent / "api.md"
BLOCK = re.compile(r"(<!-- names: ([\w.]+) -->\n).*?(<!-- end of names -->\n)", re.DOTALL)

# Modules without `__all__`, and what of them is public.
PUBLIC = {
    "fusedstep.accumulate": ("GradientAccumulator",),
    "fusedstep.convert": ("convert",),
    "fusedstep.optim.base": ("FusedOptimizer",),
    "fusedstep.optim.described": ("Running",),
    "fusedstep.optim.release": ("GradientRelease",),
}
# Of a name that two modules have, the one where it is documented.
HOMES = ("fusedstep.optim", "fusedstep.schedules", "fusedstep.accumulate", "fusedstep.hf")
# Values have no docstring of their own.
VALUES = {
    "SCHEDULES": "a dict: every name that `by_name` and `fusedstep.config` take, and what it makes",
    "TYPE_TO_SCHEDULER_FUNCTION": "a dict: transformers' names of schedules and their functions",
    "formulas": "each schedule as a function of the step: a module",
}
# The base class, whose methods are documented for all optimizers.
SHARED = "FusedOptimizer"
OF_SHARED = ["   :inherited-members: Optimizer", "   :exclude-members: profile_hook_step"]
# Classes whose constructor nobody calls.
NOT_CALLED = (SHARED, "GradientRelease", "InZero", "Running")


def names_of(module: str) -> list[str]:
    """The public names of a module, classes first."""
    found = list(PUBLIC.get(module) or import_module(module).__all__)
    return sorted(found, key=lambda name: (not isinstance(thing(module, name), type), name.lower()))


def thing(module: str, name: str) -> Any:
    return getattr(import_module(module), name)


def home(module: str, name: str) -> str:
    """The module where a name is documented: an earlier one of `HOMES`, if it has the same."""
    own = thing(module, name)
    for other in HOMES[: HOMES.index(module)] if module in HOMES else ():
        if name in names_of(other) and thing(other, name) is own:
            return other
    return module


def sentence(module: str, name: str) -> str:
    """The first sentence of a docstring, as markdown."""
    if name in VALUES:
        return VALUES[name]
    text = inspect.getdoc(thing(module, name)) or ""
    first = " ".join(text.split("\n\n")[0].split())
    first = re.split(r"(?<=[.:]) (?=[A-Z])", first)[0].rstrip(":.")
    return re.sub(r"``([^`]*)``", r"`\1`", first).replace("|", r"\|")


def table(module: str) -> str:
    lines = ["| name | what it is |\n", "|---|---|\n"]
    for name in names_of(module):
        at = home(module, name)
        words = sentence(module, name) if at == module else f"`{at}.{name}`"
        lines.append(f"| `{name}` | {words} |\n")
    return "".join(lines)


def directives(module: str) -> list[str]:
    """Lines for Sphinx that document the names which have their home in this module."""
    lines: list[str] = []
    for name in names_of(module):
        if home(module, name) != module:
            continue
        own = thing(module, name)
        if isinstance(own, ModuleType):
            lines += [f".. rubric:: {own.__name__}", ""]
            lines += [f".. automodule:: {own.__name__}", "   :members:", ""]
        elif isinstance(own, type):
            signature = "()" if name in NOT_CALLED else ""
            lines += [f".. autoclass:: {module}.{name}{signature}", "   :members:"]
            lines += [*(OF_SHARED if name == SHARED else []), ""]
        elif callable(own):
            lines += [f".. autofunction:: {module}.{name}", ""]
        else:
            lines += [f".. py:currentmodule:: {module}", "", f".. py:data:: {name}", ""]
            lines += [f"   {VALUES[name]}", ""]
    return lines


def written(text: str) -> str:
    """The page with the tables that it should have."""
    return BLOCK.sub(lambda match: f"{match[1]}{table(match[2])}{match[3]}", text)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
