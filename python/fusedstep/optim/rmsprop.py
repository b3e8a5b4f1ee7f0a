"""torch.optim.RMSprop, in one launch for each device and set of dtypes, whatever the groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .. import check
from ..plan.launcher import BackendName
from ..rules import rmsprop
from . import peer_errors, precision
from .base import Group
from .elementwise import ElementwiseOptimizer
from .hyperparams import for_steps
from .limits import NOT_NEGATIVE, Limits
from .shared_arguments import with_shared_arguments


@with_shared_arguments
class RMSprop(ElementwiseOptimizer):
    """RMSprop: same arguments, states and errors as ``torch.optim.RMSprop``.

        g = g + weight_decay p
        v = alpha v + (1 - alpha) g^2                  (centered: a = alpha a + (1 - alpha) g)
        u = g / (sqrt(v) + eps)                        (centered: sqrt(v - a^2))
        p = p - lr u                                   (with momentum: m = momentum m + u, p - lr m)

    Where torch's ``v - a^2`` is rounded to less than 0, and its update to nan, it is 0 here.

    Arguments:
        lr: the learning rate, a number or a tensor.
        alpha: how much of the averages each step keeps.
        eps: added to the divisor.
        weight_decay: added to g as ``weight_decay p`` (an L2 penalty).
        momentum: how much of m each step keeps; 0: no m.
        centered: divides by the root of the variance, not of the second moment.

    Example:
        >>> model = torch.nn.Linear(8, 8)
        >>> opt = RMSprop(model.parameters(), lr=1e-3, momentum=0.9)
        >>> model(torch.ones(8)).sum().backward()
        >>> opt.step()
    """

    squares = frozenset(("square_avg",))
    limits = Limits(
        lr=NOT_NEGATIVE,
        alpha=NOT_NEGATIVE,
        eps=NOT_NEGATIVE,
        weight_decay=NOT_NEGATIVE,
        momentum=NOT_NEGATIVE,
    )

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        max_grad_norm: float | None = None,
        state_dtype: precision.StateDtype = None,
        master_weights: bool | int = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        backend: BackendName | None = None,
    ) -> None:
        lr, alpha = check.one_number(lr, "lr"), check.one_number(alpha, "alpha")
        eps, momentum = check.one_number(eps, "eps"), check.one_number(momentum, "momentum")
        weight_decay = check.one_number(weight_decay, "weight_decay")
        peer_errors.check_lr(lr)
        peer_errors.check_not_negative(
            epsilon=eps, momentum=momentum, weight_decay=weight_decay, alpha=alpha
        )
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "alpha": alpha,
            "eps": eps,
            "centered": centered,
            "weight_decay": weight_decay,
            "capturable": capturable,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
        }
        stored = precision.checked(
            state_dtype, master_weights, stochastic_rounding, seed, type(self).__name__
        )
        super().__init__(params, defaults, backend, max_grad_norm, stored)

    def _keys(self, group: Group) -> tuple[str, ...]:
        momentum = ("momentum_buffer",) if group["momentum"] > 0 else ()
        return ("square_avg", *momentum, *(("grad_avg",) if group["centered"] else ()))

    def _rule(self, group: Group, param: Tensor) -> str:
        name = "rmsprop_centered" if group["centered"] else "rmsprop"
        return f"{name}_momentum" if group["momentum"] > 0 else name

    def _scalars(self, group: Group, step: Any, dtype: torch.dtype) -> dict[str, Any]:
        has_momentum = group["momentum"] > 0
        text = rmsprop.scalars_with_momentum if has_momentum else rmsprop.scalars
        scalar, formula = for_steps(step, text)
        momentum = {"momentum": scalar(group["momentum"])} if has_momentum else {}
        return formula(
            step,
            lr=scalar(group["lr"]),
            alpha=scalar(group["alpha"]),
            eps=scalar(group["eps"]),
            weight_decay=scalar(group["weight_decay"]),
            **momentum,
        )
