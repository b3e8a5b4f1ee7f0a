"""torch.optim.RAdam, in one launch for each device and set of dtypes, whatever the groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .. import check
from ..plan.launcher import BackendName
from ..rules import radam
from . import peer_errors, precision
from .base import Group
from .elementwise import ElementwiseOptimizer
from .hyperparams import for_steps
from .limits import BETA, NOT_NEGATIVE, Limits
from .shared_arguments import with_shared_arguments


@with_shared_arguments
class RAdam(ElementwiseOptimizer):
    """RAdam: same arguments, states and errors as ``torch.optim.RAdam``.

        g = g + weight_decay p                         (decoupled: p = (1 - lr weight_decay) p)
        m = beta1 m + (1 - beta1) g                    v = beta2 v + (1 - beta2) g^2
        n = 2 / (1 - beta2) - 1                        l = n - 2 t beta2^t / (1 - beta2^t)
        r = sqrt((l - 4) (l - 2) n / ((n - 4) (n - 2) l))
        p = p - lr / (1 - beta1^t) r sqrt(1 - beta2^t) m / (sqrt(v) + eps)
                                                       (if l <= 5: p - lr / (1 - beta1^t) m)

    Arguments:
        lr: the learning rate, a number or a tensor.
        betas: how much of the averages of g and of its square each step keeps.
        eps: added to the divisor.
        weight_decay: added to g as ``weight_decay p`` (an L2 penalty).
        decoupled_weight_decay: takes ``lr weight_decay`` of p away instead, and leaves g alone.

    Example:
        >>> model = torch.nn.Linear(8, 8)
        >>> opt = RAdam(model.parameters(), lr=1e-3)
        >>> model(torch.ones(8)).sum().backward()
        >>> opt.step()
    """

    squares = frozenset(("exp_avg_sq",))
    limits = Limits(
        lr=NOT_NEGATIVE, betas=(BETA, BETA), eps=NOT_NEGATIVE, weight_decay=NOT_NEGATIVE
    )

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
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
        peer_errors.check_lr(lr)
        peer_errors.check_not_negative(epsilon=eps)
        peer_errors.check_betas(betas)
        peer_errors.check_not_negative(weight_decay=weight_decay)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "decoupled_weight_decay": decoupled_weight_decay,
            "differentiable": differentiable,
        }
        stored = precision.checked(
            state_dtype, master_weights, stochastic_rounding, seed, type(self).__name__
        )
        super().__init__(params, defaults, backend, max_grad_norm, stored)

    def _keys(self, group: Group) -> tuple[str, ...]:
        return "exp_avg", "exp_avg_sq"

    def _rule(self, group: Group, param: Tensor) -> str:
        return "radam"

    def _scalars(self, group: Group, step: Any, dtype: torch.dtype) -> dict[str, Any]:
        scalar, formula = for_steps(step, radam.scalars)
        return formula(
            step,
            lr=scalar(group["lr"]),
            beta1=scalar(group["betas"][0]),
            beta2=scalar(group["betas"][1]),
            eps=scalar(group["eps"]),
            weight_decay=scalar(group["weight_decay"]),
            decoupled=bool(group["decoupled_weight_decay"]),
        )
