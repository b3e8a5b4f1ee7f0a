"""torch.optim.Adadelta, in one launch for each device and set of dtypes, whatever the groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .. import check
from ..plan.launcher import BackendName
from ..rules import adadelta
from . import peer_errors, precision
from .base import Group
from .elementwise import ElementwiseOptimizer
from .hyperparams import for_steps
from .limits import FRACTION, NOT_NEGATIVE, Limits
from .shared_arguments import with_shared_arguments


@with_shared_arguments
class Adadelta(ElementwiseOptimizer):
    """Adadelta: same arguments, states and errors as ``torch.optim.Adadelta``.

        g = g + weight_decay p
        v = rho v + (1 - rho) g^2
        u = sqrt(a + eps) / sqrt(v + eps) g
        a = rho a + (1 - rho) u^2
        p = p - lr u

    Arguments:
        lr: the learning rate, a number or a tensor.
        rho: how much of the averages each step keeps.
        eps: added to both averages.
        weight_decay: added to g as ``weight_decay p`` (an L2 penalty).

    Example:
        >>> model = torch.nn.Linear(8, 8)
        >>> opt = Adadelta(model.parameters())
        >>> model(torch.ones(8)).sum().backward()
        >>> opt.step()
    """

    squares = frozenset(("square_avg", "acc_delta"))
    limits = Limits(lr=NOT_NEGATIVE, rho=FRACTION, eps=NOT_NEGATIVE, weight_decay=NOT_NEGATIVE)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
        max_grad_norm: float | None = None,
        state_dtype: precision.StateDtype = None,
        master_weights: bool | int = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        backend: BackendName | None = None,
    ) -> None:
        lr, rho = check.one_number(lr, "lr"), check.one_number(rho, "rho")
        eps = check.one_number(eps, "eps")
        weight_decay = check.one_number(weight_decay, "weight_decay")
        peer_errors.check_lr(lr)
        if not 0.0 <= rho <= 1.0:
            raise ValueError(f"Invalid rho value: {rho}")
        peer_errors.check_not_negative(epsilon=eps, weight_decay=weight_decay)
        defaults = {
            "lr": lr,
            "rho": rho,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "capturable": capturable,
            "foreach": foreach,
            "differentiable": differentiable,
        }
        stored = precision.checked(
            state_dtype, master_weights, stochastic_rounding, seed, type(self).__name__
        )
        super().__init__(params, defaults, backend, max_grad_norm, stored)

    def _keys(self, group: Group) -> tuple[str, ...]:
        return "square_avg", "acc_delta"

    def _rule(self, group: Group, param: Tensor) -> str:
        return "adadelta"

    def _scalars(self, group: Group, step: Any, dtype: torch.dtype) -> dict[str, Any]:
        scalar, formula = for_steps(step, adadelta.scalars)
        return formula(
            step,
            lr=scalar(group["lr"]),
            rho=scalar(group["rho"]),
            eps=scalar(group["eps"]),
            weight_decay=scalar(group["weight_decay"]),
        )
