"""Lion, which torch.optim does not have, with the arguments that it would have there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .. import check
from ..plan.launcher import BackendName
from ..rules import lion
from . import peer_errors, precision
from .base import Group
from .elementwise import ElementwiseOptimizer
from .hyperparams import for_steps
from .limits import BETA, NOT_NEGATIVE, Limits
from .shared_arguments import with_shared_arguments


@with_shared_arguments
class Lion(ElementwiseOptimizer):
    """Lion with decoupled weight decay (Chen et al. 2023, arXiv:2302.06675).

        p = (1 - lr weight_decay) p - lr sign(beta1 m + (1 - beta1) g)
        m = beta2 m + (1 - beta2) g

    Every number moves by lr, or not at all if its average is 0 or nan. So lr should be 3 to 10
    times smaller than AdamW's, and weight_decay as much larger.

    Arguments:
        lr: the learning rate, a number or a tensor.
        betas: how much of m counts in the step, and how much of it each step keeps.
        weight_decay: each step takes ``lr weight_decay`` of p away.

    Example:
        >>> model = torch.nn.Linear(8, 8)
        >>> opt = Lion(model.parameters(), lr=1e-4, weight_decay=0.1)
        >>> model(torch.ones(8)).sum().backward()
        >>> opt.step()
    """

    limits = Limits(lr=NOT_NEGATIVE, betas=(BETA, BETA), weight_decay=NOT_NEGATIVE)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        max_grad_norm: float | None = None,
        state_dtype: precision.StateDtype = None,
        master_weights: bool | int = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        backend: BackendName | None = None,
    ) -> None:
        lr, betas = check.one_number(lr, "lr"), check.two_numbers(betas, "betas")
        weight_decay = check.one_number(weight_decay, "weight_decay")
        peer_errors.check_lr(lr)
        peer_errors.check_betas(betas)
        peer_errors.check_not_negative(weight_decay=weight_decay)
        defaults = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        stored = precision.checked(
            state_dtype, master_weights, stochastic_rounding, seed, type(self).__name__
        )
        super().__init__(params, defaults, backend, max_grad_norm, stored)

    def _keys(self, group: Group) -> tuple[str, ...]:
        return ("exp_avg",)

    def _rule(self, group: Group, param: Tensor) -> str:
        return "lion"

    def _scalars(self, group: Group, step: Any, dtype: torch.dtype) -> dict[str, Any]:
        scalar, formula = for_steps(step, lion.scalars)
        return formula(
            step,
            lr=scalar(group["lr"]),
            beta1=scalar(group["betas"][0]),
            beta2=scalar(group["betas"][1]),
            weight_decay=scalar(group["weight_decay"]),
        )
