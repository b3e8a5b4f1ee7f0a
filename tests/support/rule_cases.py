"""The rule of each case. It comes from the optimizers, so no list here names a rule."""

from __future__ import annotations

from fusedstep.rules import RULES
from tests.support.accumulating import ACCUMULATE
from tests.support.cases import CASES, Case, make_params

# The first case of a factored rule must give every kind of work something to do.
ALL_CASES = [*CASES, ACCUMULATE]


def rule_of(case: Case) -> str:
    """The case's rule, which is the same for vectors and matrices."""
    params = make_params([(3,), (4, 5)])
    optimizer = case.make(params)
    (rule,) = {optimizer._rule(optimizer.param_groups[0], param) for param in params}
    return rule


def is_factored(case: Case) -> bool:
    return RULES[rule_of(case)].factored


# The first case of each rule.
CASE_OF = {rule_of(case): case for case in reversed(ALL_CASES)}
ELEMENTWISE = [case for case in CASES if not is_factored(case)]
FACTORED = [case for case in CASES if is_factored(case)]
# A case for each elementwise rule.
ELEMENTWISE_RULES = [case for rule, case in CASE_OF.items() if not RULES[rule].factored]
