"""The spec: every update rule, written once as arithmetic on numbers.

A rule's functions use `+ - *` and, by name, `div sqrt minimum maximum where`. Run as they stand
they work on Python floats. `fusedstep.reference` runs the same code objects on torch tensors, and
`fusedstep.emit` prints them as the C++ structs of `csrc/rules.h`.

Letters, everywhere in this folder: `p` parameter, `g` gradient, `m` and `v` first and second
moment, `w` running maximum of `v`, `row` and `col` the factored second moment, `u` update.
"""

from __future__ import annotations

from . import accumulate, adafactor, adamw
from .spec import Rule

# A rule's number in C++ is its place here.
RULES: dict[str, Rule] = {
    rule.name: rule for rule in (*adamw.RULES, *adafactor.RULES, *accumulate.RULES)
}

__all__ = ["RULES", "Rule", "accumulate", "adafactor", "adamw"]
