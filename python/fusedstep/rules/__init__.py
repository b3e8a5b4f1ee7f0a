"""Every update rule, written once as arithmetic on numbers.

A rule's functions use `+ - *` and, by name, `div sqrt minimum maximum where`. They may call each
other. Called directly, they work on Python floats. `fusedstep.operations` runs the same code
objects on torch tensors, and `fusedstep.emit` prints them as the C++ structs of `csrc/rules.h`. A
literal takes the dtype of the other operand.

Each file of this folder that defines `RULES` adds rules to the package. There is no other list.

Letters in this folder: `p` parameter, `g` gradient, `m` and `v` first and second moment, `w` the
running maximum of `v`, `row` and `col` the factored second moment, `u` update.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from importlib import import_module

from .spec import Rule, RuleError


def find(folders: Iterable[str]) -> dict[str, Rule]:
    """All rules in these folders, sorted by file, in each file's order."""
    found: dict[str, Rule] = {}
    files: dict[str, str] = {}
    for stem in sorted(module.name for module in pkgutil.iter_modules(folders)):
        module = import_module(f"{__name__}.{stem}")
        for rule in getattr(module, "RULES", ()):
            if rule.name in found:
                raise RuleError(
                    f"two rules are named {rule.name!r}: in {files[rule.name]} and in "
                    f"{module.__file__}"
                )
            rule.check()
            found[rule.name], files[rule.name] = rule, str(module.__file__)
    return found


# A rule's number in C++ is its position here.
RULES: dict[str, Rule] = find(__path__)

__all__ = ["RULES", "Rule", "RuleError"]
