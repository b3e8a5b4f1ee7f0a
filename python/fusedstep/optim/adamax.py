"""torch.optim.Adamax, in one launch for each device and set of dtypes, whatever the groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .. import check
from ..plan.launcher import BackendName
from ..rules import adamax
from . import peer_errors, precision
from .base import Group
from .elementwise import ElementwiseOptimizer
from .hyperparams import for_steps
from .limits import BETA, NOT_NEGATIVE, Limits
from .shared_arguments import with_shared_arguments


@with_shared_arguments
class Adamax(ElementwiseOptimizer):
    """Adamax: same arguments, states and errors as ``torch.optim.Adamax``.

        g = g + weight_decay p
        m = beta1 m + (1 - beta1) g                    w = max(beta2 w, abs(g) + eps)
        p = p - lr / (1 - beta1^t) m / w

    Arguments:
        lr: the learning rate, a number or a tensor.
        betas: how much of m and w each step keeps.
        eps: added to abs(g).
        weight_decay: added to g as ``weight_decay p`` (an L2 penalty).

    Example:
        >>> model = torch.nn.Linear(8, 8)
        >>> opt = Adamax(model.parameters(), lr=2e-3)
        >>> model(torch.ones(8)).sum().backward()
        >>> opt.step()
    """

    squares = frozenset(("exp_inf",))
    limits = Limits(
        lr=NOT_NEGATIVE, betas=(BETA, BETA), eps=NOT_NEGATIVE, weight_decay=NOT_NEGATIVE
    )

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        max_grad_norm: float | None = None,
        state_dtype: precision.StateDtype = None,
        master_weights: bool | int = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        backend: BackendName | None = None,
    ) -> None:
        lr, betas = check.one_number(lr, "lr"), check.two_numbers(betas, "betas")
        eps = check.one_number(eps, "eps")
        weight_decay = check.one_number(weight_decay, "weight_decay")
        peer_errors.check_lr(lr)
        peer_errors.check_not_negative(epsilon=eps)
        peer_errors.check_betas(betas)
        peer_errors.check_not_negative(weight_decay=weight_decay)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "capturable": capturable,
        }
        stored = precision.checked(
            state_dtype, master_weights, stochastic_rounding, seed, type(self).__name__
        )
        super().__init__(params, defaults, backend, max_grad_norm, stored)

    def _keys(self, group: Group) -> tuple[str, ...]:
        return "exp_avg", "exp_inf"

    def _rule(self, group: Group, param: Tensor) -> str:
        return "adamax"

    def _scalars(self, group: Group, step: Any, dtype: torch.dtype) -> dict[str, Any]:
        scalar, formula = for_steps(step, adamax.scalars)
        return formula(
            step,
            lr=scalar(group["lr"]),
            beta1=scalar(group["betas"][0]),
            beta2=scalar(group["betas"][1]),
            eps=scalar(group["eps"]),
            weight_decay=scalar(group["weight_decay"]),
        )
