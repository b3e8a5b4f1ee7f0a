"""torch.optim.ASGD, in one launch for each device and set of dtypes, whatever the groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .. import check
from ..plan.launcher import BackendName
from ..rules import asgd
from . import peer_errors, precision
from .base import Group
from .elementwise import ElementwiseOptimizer, as_number
from .hyperparams import for_steps
from .limits import ANY_NUMBER, NOT_NEGATIVE, Limits
from .shared_arguments import with_shared_arguments


@with_shared_arguments
class ASGD(ElementwiseOptimizer):
    """Averaged SGD: same arguments, states and errors as ``torch.optim.ASGD``.

        g = g + weight_decay p
        p = (1 - lambd eta) p - eta g                  (at first: eta = lr)
        a = a + mu (p - a)                             (at first: a = p)
        eta = lr / (1 + lambd lr t)^alpha              mu = 1 / max(1, t - t0)

    The states ``eta`` and ``mu`` are those of the next step, as in torch. They and the step
    counters are on the parameters' devices.

    Arguments:
        lr: the learning rate, a number or a tensor.
        lambd: how fast eta falls, and how much each step takes away of p.
        alpha: the power with which eta falls.
        t0: the step after which a is an average.
        weight_decay: added to g as ``weight_decay p`` (an L2 penalty).

    Example:
        >>> model = torch.nn.Linear(8, 8)
        >>> opt = ASGD(model.parameters(), lr=1e-2, t0=100.0)
        >>> model(torch.ones(8)).sum().backward()
        >>> opt.step()
    """

    history = ("eta", "mu")
    limits = Limits(
        lr=NOT_NEGATIVE,
        lambd=NOT_NEGATIVE,
        alpha=ANY_NUMBER,
        t0=ANY_NUMBER,
        weight_decay=NOT_NEGATIVE,
    )

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        *,
        max_grad_norm: float | None = None,
        state_dtype: precision.StateDtype = None,
        master_weights: bool | int = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        backend: BackendName | None = None,
    ) -> None:
        lr, lambd = check.one_number(lr, "lr"), check.one_number(lambd, "lambd")
        alpha, t0 = check.one_number(alpha, "alpha"), check.one_number(t0, "t0")
        weight_decay = check.one_number(weight_decay, "weight_decay")
        peer_errors.check_lr(lr)
        peer_errors.check_not_negative(weight_decay=weight_decay)
        defaults = {
            "lr": lr,
            "lambd": lambd,
            "alpha": alpha,
            "t0": t0,
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

    def _counts_on_device(self, group: Group) -> bool:
        return True

    def _keys(self, group: Group) -> tuple[str, ...]:
        return ("ax",)

    def _rule(self, group: Group, param: Tensor) -> str:
        return "asgd"

    def _first_history(self, group: Group) -> tuple[Any, ...]:
        return as_number(group["lr"]), 1.0

    def _next_history(self, group: Group, step: Any) -> tuple[Any, ...]:
        scalar, formula = for_steps(step[0], asgd.after)
        options = {key: scalar(group[key]) for key in ("lr", "lambd", "alpha", "t0")}
        after = formula(step[0], **options)
        return after["eta"], after["mu"]

    def _scalars(self, group: Group, step: Any, dtype: torch.dtype) -> dict[str, Any]:
        number, eta, mu = step
        scalar, formula = for_steps(number, asgd.scalars)
        lambd, weight_decay = scalar(group["lambd"]), scalar(group["weight_decay"])
        return formula(number, eta=eta, mu=mu, lambd=lambd, weight_decay=weight_decay)
