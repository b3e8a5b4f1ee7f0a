"""The spec: every update rule, written once as arithmetic on numbers.

A rule's functions use `+ - *` and, by name, `div sqrt minimum maximum where`, and call each other.
Run as they stand they work on Python floats. `fusedstep.operations` runs the same code objects on
torch tensors, and `fusedstep.emit` prints them as the C++ structs of `csrc/rules.h`. A number in a
text has the dtype of what it meets.

A file of this folder that has `RULES` adds them to the package's; nothing else lists them.

Letters, everywhere in this folder: `p` parameter, `g` gradient, `m` and `v` first and second
moment, `w` running maximum of `v`, `row` and `col` the factored second moment, `u` update.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from importlib import import_module

from .spec import Rule, RuleError


def find(folders: Iterable[str]) -> dict[str, Rule]:
    """The rules of all files of this package that have some: by file, in the file's own order."""
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


# A rule's number in C++ is its place here.
RULES: dict[str, Rule] = find(__path__)

__all__ = ["RULES", "Rule", "RuleError"]
