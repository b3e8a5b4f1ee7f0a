"""Steps whose sums are exchanged between their stages: an all-reduce that is none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.support.problems import Problem


class FakeAllReduce:
    """Of `processes` that all hold the same: their sum is so many times what is here, and every
    process takes its part of it. Powers of two leave all bits as they are."""

    def __init__(self, processes: int = 2) -> None:
        self.processes = processes
        self.seen: list[list[tuple[int, ...]]] = []  # of each call, the sums' shapes

    def __call__(self, sums: list[Tensor]) -> None:
        self.seen.append([tuple(own.shape) for own in sums])
        for own in sums:
            assert own.dtype == torch.float64
            total = own * self.processes
            own.copy_(total / self.processes)


def exchanged(problem: Problem, exchange: Any) -> Problem:
    """The problem, with the exchange in its steps."""

    def prepare(optimizer: Any, params: Any, step: int) -> None:
        optimizer._exchange = exchange
        if problem.prepare:
            problem.prepare(optimizer, params, step)

    return replace(problem, prepare=prepare)


def check(problem: Problem, backend: str) -> None:
    """Results are within the bound of the reference's, as those without an exchange are."""
    found = exchanged(problem, FakeAllReduce()).run(backend)
    problem.assert_near(found, problem.run("reference"), problem.run("reference", exact=True))
