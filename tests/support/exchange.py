"""Steps that share sums with processes that are not there: fake shards of plain tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fusedstep.plan.shards import Processes, Shard, Split
from tests.support.problems import Problem

ROLES = ("rows", "cols", "batch")
# How many messages a step sends to one group: with a cap, and without. Vectors send one in turn 1.
MESSAGES = {"rows": (2, 1), "cols": (3, 3), "batch": (2, 1)}


class FakeProcesses(Processes):
    """Processes that all hold the same numbers. `factor` is what adding them up multiplies by: 1
    stands for one process, which changes no bit."""

    def __init__(self, factor: int = 1) -> None:
        super().__init__(None, "cpu")
        self.factor = factor
        self.seen: list[int] = []  # the length of each message

    @property
    def ranks(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(range(self.factor))

    def device_for(self, own: torch.device) -> torch.device:
        return own

    def add_up(self, numbers: Tensor) -> Callable[[], object]:
        assert numbers.dtype == torch.float64
        self.seen.append(numbers.numel())
        numbers *= self.factor
        return lambda: None

    def gather(self, own: Any) -> list[Any]:
        return [own] * self.factor


class Threads(FakeProcesses):
    """Optimizers in two threads, each with its own part of every tensor."""

    def __init__(self) -> None:
        super().__init__(2)
        self.barrier = threading.Barrier(2, timeout=60)
        self.given: dict[int, Any] = {}

    def _exchanged(self, own: Any) -> list[Any]:
        self.given[threading.get_ident()] = own
        self.barrier.wait()
        found = [self.given[key] for key in sorted(self.given)]
        self.barrier.wait()
        return found

    def add_up(self, numbers: Tensor) -> Callable[[], object]:
        self.seen.append(numbers.numel())
        parts = self._exchanged(numbers.clone())
        torch.add(*parts, out=numbers)
        return lambda: None

    def gather(self, own: Any) -> list[Any]:
        return self._exchanged(own)


def share(optimizer: Any, processes: Processes, role: str = "rows", parts: int = 1) -> None:
    """Makes the optimizer take its parameters for parts of larger ones, which are `parts` times as
    large along the dimension of `role`. A vector is split into its elements; one matrix, which is
    no batch, into its rows."""

    def shard_of(param: Tensor) -> Shard | None:
        if param.numel() == 0 or param.dim() == 0:
            return None
        own = {1: "elements", 2: role.replace("batch", "rows")}.get(param.dim(), role)
        whole = [*param.shape]
        whole[{"rows": -2, "cols": -1, "batch": 0, "elements": 0}[own]] *= parts
        return Shard(torch.Size(whole), (Split(processes, own),), optimizer.is_capped)

    optimizer._shard_of = shard_of


def exchanged(problem: Problem, processes: Processes, role: str = "rows") -> Problem:
    """The problem, with parameters that are shared in this role."""

    def prepare(optimizer: Any, params: Any, step: int) -> None:
        if "_shard_of" not in vars(optimizer):
            share(optimizer, processes, role)
        if problem.prepare:
            problem.prepare(optimizer, params, step)

    return replace(problem, prepare=prepare)


def check(problem: Problem, backend: str, role: str = "rows") -> None:
    """Asserts that results with an exchange are within the same bound as without one."""
    found = exchanged(problem, FakeProcesses(), role).run(backend)
    problem.assert_near(found, problem.run("reference"), problem.run("reference", exact=True))
