"""The rules as Triton functions: the code objects of `fusedstep.rules`, with Triton's operations.

`UPDATES` has the elementwise update of every rule. The other functions of the Adafactor family keep
their names.
"""

import ast
import inspect
import textwrap
from types import FunctionType
from typing import Any

import torch
import triton
import triton.language as tl

from fusedstep.rules import RULES, Rule, adafactor
from fusedstep.rules.spec import called_by

from .numbers import div, maximum, minimum, sqrt, where, where_in_float64

OPERATIONS = {op.__name__: op for op in (div, maximum, minimum, sqrt, where)}
IN_FLOAT64 = {**OPERATIONS, "where": where_in_float64}


def bind(function: Any, operations: dict[str, Any] = OPERATIONS) -> Any:
    """A text as a Triton function."""
    called = {name: bind(text, operations) for name, text in called_by(function).items()}
    # The interpreter looks for Triton's language among a kernel's globals, and the compiler for the
    # names of types.
    names = {"__name__": function.__module__, "tl": tl, "Any": tl.constexpr(Any)}
    namespace = {**names, **operations, **called}
    return triton.jit(FunctionType(function.__code__, namespace, function.__name__))


def _chooses_between_literals(function: Any) -> bool:
    """Whether the text has a where(condition, 1.0, 0.0) without a number that gives the dtype."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for call in (call for call in calls if getattr(call.func, "id", "") == "where"):
        if not any(isinstance(node, ast.Name) for a in call.args[1:] for node in ast.walk(a)):
            return True
    return any(_chooses_between_literals(text) for text in called_by(function).values())


UPDATES: dict[str, Any] = {name: bind(rule.update) for name, rule in RULES.items()}
UPDATES |= {
    f"{name} in float64": bind(rule.update, IN_FLOAT64)
    for name, rule in RULES.items()
    if _chooses_between_literals(rule.update)
}


def update_of(rule: Rule, dtype: torch.dtype) -> Any:
    """The update for the compute dtype `dtype`."""
    name = f"{rule.name} in float64" if dtype == torch.float64 else rule.name
    return UPDATES.get(name, UPDATES[rule.name])


second_moment = bind(adafactor.second_moment)
floored_mean = bind(adafactor.floored_mean)
row_factor = bind(adafactor.row_factor)
col_factor = bind(adafactor.col_factor)
is_capped = bind(adafactor.is_capped)
precondition = bind(adafactor.precondition)
inverse = bind(adafactor.inverse)
col_sum_u2 = bind(adafactor.col_sum_u2)
rms = bind(adafactor.rms)
finish = bind(adafactor.finish)
