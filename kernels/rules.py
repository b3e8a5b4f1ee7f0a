"""The rules as Triton functions: the code objects of `fusedstep.rules`, operations bound to Triton.

`UPDATES` has the elementwise update of every rule. The other functions of the Adafactor family go
by their own names.
"""

from types import FunctionType
from typing import Any

import triton
import triton.language as tl

from fusedstep.rules import RULES, adafactor

from .numbers import div, maximum, minimum, sqrt, where

OPERATIONS = {op.__name__: op for op in (div, maximum, minimum, sqrt, where)}


def _bind(function: Any) -> Any:
    # The interpreter looks for Triton's language among a kernel's names.
    namespace = {"__name__": function.__module__, "tl": tl, **OPERATIONS}
    return triton.jit(FunctionType(function.__code__, namespace, function.__name__))


UPDATES: dict[str, Any] = {name: _bind(rule.functions[0]) for name, rule in RULES.items()}

second_moment = _bind(adafactor.second_moment)
floored_mean = _bind(adafactor.floored_mean)
row_factor = _bind(adafactor.row_factor)
col_factor = _bind(adafactor.col_factor)
damped = _bind(adafactor.damped)
inverse = _bind(adafactor.inverse)
col_energy = _bind(adafactor.col_energy)
rms = _bind(adafactor.rms)
finish = _bind(adafactor.finish)
