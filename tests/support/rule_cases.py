"""The rule of each case. It comes from the optimizers, so no list here names a rule."""

from __future__ import annotations

from typing import Any

from fusedstep.optim.elementwise import ElementwiseOptimizer
from fusedstep.rules import RULES
from tests.support.accumulating import ACCUMULATE
from tests.support.cases import CASES, Case, each, make_params
from tests.support.muon_rules import MUON_RULES
from tests.support.sweeps import sweep

# The first case of a factored rule must give every kind of work something to do.
ALL_CASES = [*CASES, ACCUMULATE, *MUON_RULES]


def rule_of(case: Case) -> str:
    """The case's rule, which is the same for vectors and matrices."""
    params = make_params([(3,), (4, 5)])
    optimizer = case.make(params)
    (rule,) = {optimizer._rule(optimizer.param_groups[0], param) for param in params}
    return rule


def is_factored(case: Case) -> bool:
    return RULES[rule_of(case)].factored


def has_penalty(case: Case) -> bool:
    """Whether the rule can have the decay in the gradient."""
    return "penalty" in RULES[rule_of(case)].scalars


# The first case of each rule.
CASE_OF = {rule_of(case): case for case in reversed(ALL_CASES)}
ELEMENTWISE = [case for case in CASES if not is_factored(case)]
FACTORED = [case for case in CASES if is_factored(case)]
WITH_STATES = [c for c in CASES if is_factored(c) or RULES[rule_of(c)].states]
# For contracts on memory alone: all factored cases, and one of each class and elementwise rule.
_FIRST = {(case.ours, rule_of(case)): case for case in reversed(CASES)}
ONE_A_RULE = [case for case in CASES if is_factored(case) or case in _FIRST.values()]


def once_a_rule(function: Any) -> Any:
    """Runs a test over all cases. `make test` takes those of ONE_A_RULE."""
    return each(sweep(CASES, ONE_A_RULE))(function)


def _kind(case: Case) -> tuple[Any, ...]:
    """What the host sees of an elementwise case: how many states, which counters, first values."""
    own: Any = case.ours
    is_torchs = own.__module__.startswith("fusedstep.optim")
    seen = (own.steps_are_tensors, own.history, case.has_counter, case.starts_empty)
    first = is_torchs and own._first is not ElementwiseOptimizer._first
    return (None if is_torchs else own, len(RULES[rule_of(case)].states), *seen, first)


# For contracts on what the host does: all factored cases, and one of each kind of elementwise case.
_FIRST_OF_KIND = {_kind(case): case for case in reversed(ELEMENTWISE)}
ONE_A_KIND = [case for case in CASES if is_factored(case) or case in _FIRST_OF_KIND.values()]


def once_a_kind(function: Any) -> Any:
    """Runs a test over all cases. `make test` takes those of ONE_A_KIND."""
    return each(sweep(CASES, ONE_A_KIND))(function)


# A case for each elementwise rule.
ELEMENTWISE_RULES = [case for rule, case in CASE_OF.items() if not RULES[rule].factored]
