"""Muon's two rules as cases of the tables, over tensors of any shape: an optimizer of each rule.
Muon itself has tests of its own, because it takes matrices only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusedstep.optim.elementwise import ElementwiseOptimizer
from fusedstep.optim.hyperparams import for_steps
from fusedstep.optim.precision import checked
from fusedstep.rules import muon
from tests.support.cases import Case


class OneRule(ElementwiseOptimizer):
    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        *,
        max_grad_norm: float | None = None,
        state_dtype: torch.dtype | str | None = None,
        master_weights: bool | int = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        backend: str | None = None,
    ) -> None:
        stored = checked(state_dtype, master_weights, stochastic_rounding, seed, "OneRule")
        defaults = {"lr": lr, "differentiable": False}
        super().__init__(params, defaults, backend, max_grad_norm, stored)


class Average(OneRule):
    """p = (1 - momentum) g + momentum m, where Muon puts u."""

    def _keys(self, group: Any) -> tuple[str, ...]:
        return ("momentum_buffer",)

    def _rule(self, group: Any, param: Tensor) -> str:
        return "muon_average"

    def _scalars(self, group: Any, step: Any, dtype: torch.dtype) -> dict[str, Any]:
        _, formula = for_steps(step, muon.average_scalars)
        return formula(step, momentum=0.7, nesterov=True)


class Descend(OneRule):
    """p = (1 - lr decay) p - lr ratio g, where Muon has x for g."""

    def _keys(self, group: Any) -> tuple[str, ...]:
        return ()

    def _rule(self, group: Any, param: Tensor) -> str:
        return "muon_descend"

    def _scalars(self, group: Any, step: Any, dtype: torch.dtype) -> dict[str, Any]:
        scalar, formula = for_steps(step, muon.descend_scalars)
        return formula(step, lr=scalar(group["lr"]), weight_decay=0.1, ratio=1.7)


MUON_RULES = [Case("muon-average", Average, Average), Case("muon-descend", Descend, Descend)]
