"""GradientAccumulator as one more case of the tables: each step adds the gradients and leaves them,
and the sums are its states."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fusedstep.accumulate import GradientAccumulator
from tests.support.cases import Case


class Accumulating:
    """What the tables ask of an optimizer."""

    def __init__(self, params: list[Any], scale: float, backend: str | None = None) -> None:
        groups = [group if isinstance(group, dict) else {"params": [group]} for group in params]
        self.params = [param for group in groups for param in group["params"]]
        self.accumulator = GradientAccumulator(self.params, scale, backend=backend)

    def step(self) -> None:
        grads = [param.grad for param in self.params]
        self.accumulator()
        for param, grad in zip(self.params, grads, strict=True):
            assert param.grad is None
            param.grad = grad

    @property
    def state(self) -> dict[Tensor, dict[str, Any]]:
        sums = self.accumulator.gradients
        return {param: {"sum": own} for param, own in zip(self.params, sums, strict=True)}

    @property
    def _plan(self) -> Any:
        return self.accumulator._plan

    @_plan.setter
    def _plan(self, plan: None) -> None:
        self.accumulator._plan = plan


ACCUMULATE = Case("accumulate", Accumulating, Accumulating, {"scale": 0.3})
