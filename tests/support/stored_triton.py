"""A `Problem` with options for low precision: the numbers of all states, however they are stored,
and how near they must be to the reference's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import fusedstep.optim.stored
from fusedstep.plan.storage import COPY, REST, SCALE
from fusedstep.stored_numbers import from_blocks, in_blocks, join
from tests.support.cases import Case, same_bits, states
from tests.support.problems import Problem, Run
from tests.support.rule_cases import is_factored
from tests.support.stored_cases import Stored, assert_same_bits

# A few units of float32: sums have another order than the reference's.
FEW = 8 * 2.0**-23


def problem_of(case: Case, stored: Stored, shapes: list[tuple[int, ...]], **more: Any) -> Problem:
    """The case with these options."""
    own = replace(case, only_ours={**case.only_ours, **stored.options})
    return Problem(own, shapes, (stored.dtype,), **more)


def check(case: Case, stored: Stored, shapes: list[tuple[int, ...]], **more: Any) -> None:
    """Asserts that Triton's results are the reference's: bit by bit, or of a factored rule as near
    to float64 without the options, and with the same noise."""
    problem = problem_of(case, stored, shapes, **more)
    found, reference = problem.run("triton"), problem.run("reference")
    if is_factored(case):
        exact = replace(problem, case=case).run("reference", exact=True)
        assert_near(found, reference, exact)
    else:
        assert_same_bits(*found, *reference)


def assert_near(found: Run, reference: Run, exact: Run) -> None:
    """An error may be twice the reference's and FEW units of the largest number. Nearly all stored
    numbers are the same: with other noise half of them would differ."""
    for index, params in enumerate(zip(found[1], reference[1], exact[1], strict=True)):
        runs = (found, reference, exact)
        values = [numbers(run[0], param) for run, param in zip(runs, params, strict=True)]
        assert values[0].keys() == values[1].keys() == values[2].keys()
        for name, right in values[2].items():
            if name == "step":
                continue
            largest = right.abs().max()
            own, other = (((value[name] - right).abs().max() / largest) for value in values[:2])
            where = f"{name} of {index} {tuple(right.shape)}"
            assert own <= 2 * other + FEW, f"{where}: {own:.3g}, the reference has {other:.3g}"
        if params[0].dtype != torch.float32:
            same = (params[0] == params[1]).double().mean()
            assert same > 0.99, f"{1 - same:.1%} of parameter {index} are others"


def numbers(optimizer: torch.optim.Optimizer, param: Tensor) -> dict[str, Tensor]:
    """The numbers of the parameter and of its states, in float64."""
    kept = states(optimizer, param)
    own = param.detach()
    if REST in kept:
        own = join(own, kept[REST])
    found = {"parameter": kept.get(COPY, own)}
    for key, value in kept.items():
        if key + SCALE in kept:
            scales = kept[key + SCALE].reshape(-1, 1)
            found[key] = from_blocks(in_blocks(value), scales).view(value.shape)
        elif key not in (REST, COPY) and not key.endswith(SCALE):
            found[key] = value
    return {key: value.double() for key, value in found.items()}


def in_runs(first: int, *rest: int) -> Any:
    """Lets the numbers of every parameter lie in runs of a whole tensor: the numbers after the key
    in NOISE of `rules/layout.py`."""
    return mock.patch.object(fusedstep.optim.stored, "places_of", return_value=(first, *rest))


def assert_differs(a: Run, b: Run) -> None:
    """Asserts that not all parameters are the same."""
    assert not all(same_bits(p.detach(), q.detach()) for p, q in zip(a[1], b[1], strict=True))
