"""torch.optim.Adagrad, in one launch for each device and set of dtypes, whatever the groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .. import check
from ..plan.launcher import BackendName
from ..plan.storage import COPY
from ..rules import adagrad
from . import peer_errors, precision
from .base import Group
from .elementwise import ElementwiseOptimizer
from .hyperparams import for_steps
from .limits import NOT_NEGATIVE, Limits
from .shared_arguments import with_shared_arguments


@with_shared_arguments
class Adagrad(ElementwiseOptimizer):
    """Adagrad: same arguments, states and errors as ``torch.optim.Adagrad``.

        g = g + weight_decay p
        v = v + g^2
        p = p - lr / (1 + (t - 1) lr_decay) g / (sqrt(v) + eps)

    The states are made by the constructor, as torch's are.

    Arguments:
        lr: the learning rate, a number or a tensor.
        lr_decay: how fast the learning rate falls.
        weight_decay: added to g as ``weight_decay p`` (an L2 penalty).
        initial_accumulator_value: of v.
        eps: added to the divisor.

    Example:
        >>> model = torch.nn.Linear(8, 8)
        >>> opt = Adagrad(model.parameters(), lr=1e-2)
        >>> model(torch.ones(8)).sum().backward()
        >>> opt.step()
    """

    refuses_sparse = "Adagrad does not support sparse gradients here, use torch.optim.Adagrad"
    squares = frozenset(("sum",))
    limits = Limits(
        lr=NOT_NEGATIVE,
        lr_decay=NOT_NEGATIVE,
        weight_decay=NOT_NEGATIVE,
        initial_accumulator_value=NOT_NEGATIVE,
        eps=NOT_NEGATIVE,
    )

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
        state_dtype: precision.StateDtype = None,
        master_weights: bool | int = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        backend: BackendName | None = None,
    ) -> None:
        lr, lr_decay = check.one_number(lr, "lr"), check.one_number(lr_decay, "lr_decay")
        weight_decay = check.one_number(weight_decay, "weight_decay")
        initial_accumulator_value = check.one_number(
            initial_accumulator_value, "initial_accumulator_value"
        )
        eps = check.one_number(eps, "eps")
        peer_errors.check_lr(lr)
        peer_errors.check_not_negative(
            lr_decay=lr_decay,
            weight_decay=weight_decay,
            initial_accumulator_value=initial_accumulator_value,
            epsilon=eps,
        )
        peer_errors.check_ways(fused, foreach, differentiable)
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "eps": eps,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "fused": fused,
        }
        stored = precision.checked(
            state_dtype, master_weights, stochastic_rounding, seed, type(self).__name__
        )
        super().__init__(params, defaults, backend, max_grad_norm, stored)
        self._make_missing_states()
        for state in self.state.values():
            state.pop(COPY, None)  # weights may be loaded before the first step, which makes it

    def share_memory(self) -> None:
        """Moves the sums to shared memory, for several processes."""
        for state in self.state.values():
            state["sum"].share_memory_()

    def _keys(self, group: Group) -> tuple[str, ...]:
        return ("sum",)

    def _first(self, group: Group, key: str) -> float | Tensor:
        # A group that is added later has the constructor's value, as in torch.
        return float(self.defaults["initial_accumulator_value"])

    def _rule(self, group: Group, param: Tensor) -> str:
        return "adagrad"

    def _scalars(self, group: Group, step: Any, dtype: torch.dtype) -> dict[str, Any]:
        scalar, formula = for_steps(step, adagrad.scalars)
        return formula(
            step,
            lr=scalar(group["lr"]),
            lr_decay=scalar(group["lr_decay"]),
            eps=scalar(group["eps"]),
            weight_decay=scalar(group["weight_decay"]),
        )
