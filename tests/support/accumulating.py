"""GradientAccumulator as a case of the tables: each step adds the gradients and keeps them, and the
sums are its states. Also helpers that make calls of an accumulator with weights and gradients."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from fusedstep.accumulate import GradientAccumulator
from tests.support.cases import Case, make_params, set_grads


class Accumulating:
    """The accumulator with the interface of an optimizer, as the tables need it."""

    def __init__(self, params: list[Any], scale: float, backend: str | None = None) -> None:
        groups = [group if isinstance(group, dict) else {"params": [group]} for group in params]
        self.params = [param for group in groups for param in group["params"]]
        self.accumulator = GradientAccumulator(self.params, scale, backend=backend)

    # One group without options.
    param_groups: ClassVar = [{}]

    def _rule(self, group: Any, param: Tensor) -> str:
        return "accumulate"

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

WEIGHTS = [1.0, 0.3, -2.5, 1e-3]


def gradients(params, call, scale=1.0):
    set_grads(params, call, scale)
    return [param.grad.clone() for param in params]


def run(params, calls, **options):
    accumulator = GradientAccumulator(params, **options)
    for weight, grads in calls:
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        accumulator(weight)
    return accumulator


def of_dtype(dtype, weights=WEIGHTS):
    params = make_params(dtype=dtype)
    return params, [(weight, gradients(params, k)) for k, weight in enumerate(weights)]
