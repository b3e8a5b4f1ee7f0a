"""torch.optim.NAdam, in one launch for each device and set of dtypes, whatever the groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .. import check
from ..plan.launcher import BackendName
from ..rules import nadam
from . import peer_errors, precision
from .base import Group
from .elementwise import ElementwiseOptimizer
from .hyperparams import for_steps, rounded, scalar_dtype
from .limits import BETA, NOT_NEGATIVE, Limits
from .shared_arguments import with_shared_arguments


@with_shared_arguments
class NAdam(ElementwiseOptimizer):
    """NAdam: same arguments, states and errors as ``torch.optim.NAdam``.

        g = g + weight_decay p                         (decoupled: p = (1 - lr weight_decay) p)
        m = beta1 m + (1 - beta1) g                    v = beta2 v + (1 - beta2) g^2
        mu = beta1 (1 - 0.96^(t momentum_decay) / 2)   mu' = that of t + 1
        M = M mu
        u = (1 - mu) / (1 - M) g + mu' / (1 - M mu') m
        p = p - lr u / (sqrt(v / (1 - beta2^t)) + eps)

    M is the state ``mu_product``.

    Arguments:
        lr: the learning rate, a number or a tensor.
        betas: how much of the averages of g and of its square each step keeps.
        eps: added to the divisor.
        weight_decay: added to g as ``weight_decay p`` (an L2 penalty).
        momentum_decay: how fast mu grows from beta1 / 2 to beta1.
        decoupled_weight_decay: takes ``lr weight_decay`` of p away instead, and leaves g alone.

    Example:
        >>> model = torch.nn.Linear(8, 8)
        >>> opt = NAdam(model.parameters(), lr=2e-3)
        >>> model(torch.ones(8)).sum().backward()
        >>> opt.step()
    """

    squares = frozenset(("exp_avg_sq",))
    history = ("mu_product",)
    limits = Limits(
        lr=NOT_NEGATIVE,
        betas=(BETA, BETA),
        eps=NOT_NEGATIVE,
        weight_decay=NOT_NEGATIVE,
        momentum_decay=NOT_NEGATIVE,
    )

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
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
        eps = check.one_number(eps, "eps")
        weight_decay = check.one_number(weight_decay, "weight_decay")
        momentum_decay = check.one_number(momentum_decay, "momentum_decay")
        peer_errors.check_lr(lr)
        peer_errors.check_not_negative(epsilon=eps)
        peer_errors.check_betas(betas)
        peer_errors.check_not_negative(weight_decay=weight_decay, momentum_decay=momentum_decay)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum_decay": momentum_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
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
        return "exp_avg", "exp_avg_sq"

    def _rule(self, group: Group, param: Tensor) -> str:
        return "nadam"

    def _first_history(self, group: Group) -> tuple[Any, ...]:
        return (1.0,)

    def _next_history(self, group: Group, step: Any) -> tuple[Any, ...]:
        number, mu_product = step
        scalar, formula = for_steps(number, nadam.mu_at)
        beta1, decay = scalar(group["betas"][0]), scalar(group["momentum_decay"])
        # torch multiplies in the dtype of its state, and uses what that holds.
        mu = rounded(formula(number, beta1=beta1, momentum_decay=decay), scalar_dtype())
        return (rounded(mu_product * mu, scalar_dtype()),)

    def _scalars(self, group: Group, step: Any, dtype: torch.dtype) -> dict[str, Any]:
        scalar, formula = for_steps(step[0], nadam.scalars)
        (mu_product,) = self._next_history(group, step)
        return formula(
            step[0],
            mu_product=mu_product,
            lr=scalar(group["lr"]),
            beta1=scalar(group["betas"][0]),
            beta2=scalar(group["betas"][1]),
            eps=scalar(group["eps"]),
            weight_decay=scalar(group["weight_decay"]),
            momentum_decay=scalar(group["momentum_decay"]),
            decoupled=bool(group["decoupled_weight_decay"]),
        )
