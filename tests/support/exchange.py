"""Steps with an exchange of sums between their phases, by a fake all-reduce."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.support.problems import Problem


class FakeAllReduce:
    """An all-reduce over `processes` that hold the same numbers: multiplies by `processes`, then
    divides by it. With a power of two all bits stay the same."""

    def __init__(self, processes: int = 2) -> None:
        self.processes = processes
        self.seen: list[list[tuple[int, ...]]] = []  # the shapes of the sums in each call

    def __call__(self, sums: list[Tensor]) -> None:
        self.seen.append([tuple(own.shape) for own in sums])
        for own in sums:
            assert own.dtype == torch.float64
            total = own * self.processes
            own.copy_(total / self.processes)


def exchanged(problem: Problem, exchange: Any) -> Problem:
    """The problem with an exchange in its steps."""

    def prepare(optimizer: Any, params: Any, step: int) -> None:
        optimizer._exchange = exchange
        if problem.prepare:
            problem.prepare(optimizer, params, step)

    return replace(problem, prepare=prepare)


def check(problem: Problem, backend: str) -> None:
    """Asserts that results with an exchange are within the same bound as without one."""
    found = exchanged(problem, FakeAllReduce()).run(backend)
    problem.assert_near(found, problem.run("reference"), problem.run("reference", exact=True))
