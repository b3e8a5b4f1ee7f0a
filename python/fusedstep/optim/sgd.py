"""torch.optim.SGD, in one launch for each device and set of dtypes, whatever the groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .. import check
from ..rules import sgd
from . import peer_errors, precision
from .base import Group, State
from .elementwise import ElementwiseOptimizer
from .hyperparams import for_steps, start_counters
from .limits import ANY_NUMBER, NOT_NEGATIVE, Limits
from .shared_arguments import with_shared_arguments


@with_shared_arguments
class SGD(ElementwiseOptimizer):
    """SGD: same arguments, states and errors as ``torch.optim.SGD``.

        g = g + weight_decay p
        m = momentum m + (1 - dampening) g             (at first: m = g)
        p = p - lr m                                   (nesterov: p - lr (g + momentum m))

    States have no step counter, as in torch, except with ``stochastic_rounding``, whose noise
    depends on the step. So a CUDA graph can capture a step after one outside it, if ``lr`` does
    not change or is a tensor on the GPU.

    Arguments:
        lr: the learning rate, a number or a tensor.
        momentum: how much of m each step keeps; 0: no m.
        dampening: how much of g is left out of m, except at first.
        weight_decay: added to g as ``weight_decay p`` (an L2 penalty). A number or a tensor.
        nesterov: looks one step of m ahead. It needs momentum, and no dampening.

    Example:
        >>> model = torch.nn.Linear(8, 8)
        >>> opt = SGD(model.parameters(), lr=1e-2, momentum=0.9, nesterov=True)
        >>> model(torch.ones(8)).sum().backward()
        >>> opt.step()
    """

    peer_counts = False
    refuses_sparse = "SGD does not support sparse gradients here, use torch.optim.SGD"
    limits = Limits(
        lr=NOT_NEGATIVE, momentum=NOT_NEGATIVE, dampening=ANY_NUMBER, weight_decay=NOT_NEGATIVE
    )

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
        state_dtype: torch.dtype | str | None = None,
        master_weights: bool | int = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        backend: str | None = None,
    ) -> None:
        lr, momentum = check.one_number(lr, "lr"), check.one_number(momentum, "momentum")
        dampening = check.one_number(dampening, "dampening")
        weight_decay = check.one_number(weight_decay, "weight_decay")
        peer_errors.check_lr(lr)
        peer_errors.check_not_negative(momentum=momentum, weight_decay=weight_decay)
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        peer_errors.check_ways(fused, foreach, differentiable)
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        stored = precision.checked(
            state_dtype, master_weights, stochastic_rounding, seed, type(self).__name__
        )
        super().__init__(params, defaults, backend, max_grad_norm, stored)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._counts_in_states():
            start_counters(self.state, "momentum_buffer")

    def _counts_in_states(self) -> bool:
        return self.stochastic_rounding

    def _counts_on_device(self, group: Group) -> bool:
        return bool(group["fused"]) or not self._counts_in_states()

    def _lacks_states(self, group: Group, state: State) -> bool:
        return bool(self._keys(group)) and state.get("momentum_buffer") is None

    def _keys(self, group: Group) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] != 0 else ()

    def _rule(self, group: Group, param: Tensor) -> str:
        return "sgd_momentum" if group["momentum"] != 0 else "sgd"

    def _scalars(self, group: Group, step: Any, dtype: torch.dtype) -> dict[str, Any]:
        if group["momentum"] == 0:
            scalar, formula = for_steps(step, sgd.scalars)
            return formula(step, lr=scalar(group["lr"]), weight_decay=scalar(group["weight_decay"]))
        scalar, formula = for_steps(step, sgd.scalars_with_momentum)
        return formula(
            step,
            lr=scalar(group["lr"]),
            weight_decay=scalar(group["weight_decay"]),
            momentum=scalar(group["momentum"]),
            dampening=scalar(group["dampening"]),
            nesterov=bool(group["nesterov"]),
        )
