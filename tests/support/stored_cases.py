"""The table of low-precision options, for contracts that run over optimizers and options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusedstep.rules import RULES
from tests.support.cases import Case, Params, same_bits, states
from tests.support.rule_cases import CASE_OF, FACTORED, rule_of

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


@dataclass(frozen=True)
class Stored:
    """Options of an optimizer, and the dtype of its parameters."""

    name: str
    options: dict[str, Any]
    dtype: torch.dtype = BF16

    def __str__(self) -> str:
        return self.name


STORED = [
    Stored("rest16", {"master_weights": True}),
    Stored("rest16-bf16-states", {"master_weights": True, "state_dtype": BF16}),
    Stored("rest8-bf16-states", {"master_weights": 8, "state_dtype": BF16}),
    Stored("copied", {"master_weights": True}, F16),
    Stored("noisy", {"stochastic_rounding": True, "seed": 3}),
    Stored("noisy-f32-states", {"stochastic_rounding": True, "state_dtype": F32}),
    Stored("noisy-states", {"stochastic_rounding": True, "state_dtype": BF16}, F32),
    Stored(
        "rest16-noisy-states",
        {"master_weights": True, "stochastic_rounding": True, "state_dtype": BF16},
    ),
    Stored("int8", {"state_dtype": "int8"}),
    Stored("int8-f32", {"state_dtype": "int8"}, F32),
    Stored("int8-rest8", {"state_dtype": "int8", "master_weights": 8}),
    Stored("int8-noisy", {"state_dtype": "int8", "stochastic_rounding": True, "seed": -5}),
    Stored("int8-copied", {"state_dtype": "int8", "master_weights": True}, F16),
]

# Shapes of cases.py, and matrices whose states can have 8 bits: rows of 128 numbers and of several
# blocks, of one piece and of several, a batch.
STORED_SHAPES = [
    (7,),
    (1025,),
    (1, 1),
    (300, 1),
    (33, 17),
    (9, 1030),
    (261, 256),
    (600, 128),
    (40, 512),
    (4, 3, 3, 3),
    (2, 270, 260),
    (3, 16, 128),
    (1, 70016),
]


def fits(case: Case, stored: Stored) -> bool:
    """Whether the options have an effect: 8 bits are for states as large as their matrix."""
    return bool(RULES[rule_of(case)].states) or not stored.name.startswith("int8")


OF_ADAMW = ("adamw", "adamw-amsgrad", "old-adamw")
OF_ADAFACTOR = ("adafactor", "adafactor-part-capped", "hf-adafactor", "hf-adafactor-momentum")
# One of each rule, and of each dialect.
STORED_CASES = [
    CASE_OF[rule] for rule in RULES if rule != "accumulate" and not RULES[rule].factored
]
STORED_CASES += [case for case in FACTORED if case.name in OF_ADAFACTOR]
PAIRS = [(case, stored) for case in STORED_CASES for stored in STORED if fits(case, stored)]
# Rules differ in arithmetic only, so most of them take a few options: each way of storage once.
USUAL_PAIRS = [
    (case, stored)
    for case, stored in PAIRS
    if case.name in (*OF_ADAMW, *OF_ADAFACTOR)
    or stored.name in ("rest16-bf16-states", "copied", "noisy", "int8-rest8")
]


def assert_same_bits(
    a: torch.optim.Optimizer, a_params: Params, b: torch.optim.Optimizer, b_params: Params
) -> None:
    """Asserts that parameters and all states have the same bits, whatever their dtypes."""
    for index, (p, q) in enumerate(zip(a_params, b_params, strict=True)):
        where = f"parameter {index} {tuple(p.shape)} {p.dtype}"
        assert same_bits(p, q), where
        own, other = states(a, p), states(b, q)
        assert own.keys() == other.keys(), where
        for key in own:
            assert same_bits(own[key], other[key]), f"{where}: state {key}"


def of_dtype(params: Params, dtype: torch.dtype) -> list[Tensor]:
    """The parameters as leaves of another dtype."""
    return [torch.nn.Parameter(p.detach().to(dtype)) for p in params]
