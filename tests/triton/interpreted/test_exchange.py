"""Triton's kernels, interpreted with numpy, with an exchange of sums between a step's stages."""

import itertools

import pytest

from tests.support.cases import CASES, DTYPES, assert_same, each
from tests.support.exchange import ROLES, SHARES, FakeProcesses, check, check_parts, exchanged
from tests.support.problems import Problem
from tests.support.rule_cases import FACTORED
from tests.support.sweeps import sweep

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy warns about inf and nan

CASE = {case.name: case for case in CASES}
SHAPES = [(7,), (1, 9), (9, 1), (33, 17), (258, 40), (2, 17, 20), (3, 5, 7), (2, 2064)]
each_role = pytest.mark.parametrize("role", ROLES)


@pytest.mark.parametrize("role", sweep(ROLES, ["cols", "batch"]))
@each(sweep(FACTORED, [CASE["adafactor-part-capped"]]))
def test_stages_with_an_exchange_between_them(case, role):
    check(Problem(case, SHAPES), "triton", role)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_role
@each(FACTORED)
def test_every_case_with_an_exchange(case, role, dtype):
    check(Problem(case, SHAPES, (dtype,)), "triton", role)


# Matrices that leave sums of several units, or of several chunks of rows, in any case. So the order
# of sums is the same.
OF_SEVERAL_UNITS = {
    "rows": [(300, 40)],
    "cols": [(20, 8200)],
    "batch": [(300, 40), (2, 17, 20), (3, 5, 7)],
}


@pytest.mark.parametrize("role", sweep(ROLES, ["rows"]))
def test_an_exchange_that_changes_nothing_changes_no_bit(role):
    problem = Problem(CASE["hf-adafactor-momentum"], [*OF_SEVERAL_UNITS[role], (7,), (20_000,)])
    with_one = exchanged(problem, FakeProcesses(), role).run("triton")
    assert_same(*with_one, *problem.run("triton"))


@pytest.mark.parametrize(
    ("role", "shares", "case"),
    sweep(
        itertools.product(ROLES, SHARES, ("adafactor-part-capped", "hf-adafactor-trainer")),
        [("batch", "uneven", "adafactor-part-capped"), ("rows", "nothing", "hf-adafactor-trainer")],
    ),
)
def test_two_processes_with_parts_of_each_tensor_make_the_steps_of_one(role, shares, case):
    shapes = [(7,), (33, 17), (258, 40), (1, 5), (5, 1), (6, 5, 7), (2, 2064)]
    check_parts(CASE[case], "triton", role, SHARES[shares], shapes)
