"""The AdamW that transformers had before version 5: eps outside the bias correction, decay last."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .. import check
from ..optim import precision
from ..optim.base import FusedOptimizer, Group, State
from ..optim.hyperparams import for_steps
from ..optim.limits import ANY_NUMBER, BETA, NOT_NEGATIVE, Limits
from ..optim.shared_arguments import with_shared_arguments
from ..plan.launcher import BackendName
from ..rules import adamw


@with_shared_arguments
class AdamW(FusedOptimizer):
    """Adam with weight decay fix: same arguments and states as ``transformers.optimization.AdamW``.

        m = beta1 m + (1 - beta1) g               v = beta2 v + (1 - beta2) g^2
        size = lr sqrt(1 - beta2^t) / (1 - beta1^t) if correct_bias else lr
        p = (1 - lr weight_decay) (p - size m / (sqrt(v) + eps))

    Arguments:
        lr: the learning rate, a number or a tensor.
        betas: how much of the averages of g and of its square each step keeps.
        eps: added to the divisor, after the bias correction.
        weight_decay: each step takes ``lr weight_decay`` of the new p away.
        correct_bias: corrects both averages for having started at zero.
        no_deprecation_warning: True: the constructor does not warn as transformers' does.

    Example:
        >>> model = torch.nn.Linear(8, 8)
        >>> opt = AdamW(model.parameters(), lr=1e-3, no_deprecation_warning=True)
        >>> model(torch.ones(8)).sum().backward()
        >>> opt.step()
    """

    steps_are_tensors = False
    scalars_on_tensors = True
    squares = frozenset(("exp_avg_sq", "max_exp_avg_sq"))
    limits = Limits(lr=NOT_NEGATIVE, betas=(BETA, BETA), eps=NOT_NEGATIVE, weight_decay=ANY_NUMBER)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
        no_deprecation_warning: bool = False,
        *,
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
        if not no_deprecation_warning:
            warnings.warn(
                "transformers has removed this AdamW; fusedstep.optim.AdamW is torch's. "
                "Set no_deprecation_warning=True to keep using this one without this message.",
                FutureWarning,
                stacklevel=2,
            )
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        if lr < 0.0:
            raise ValueError(f"Invalid learning rate: {lr} - should be >= 0.0")
        for beta in betas:
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"Invalid beta parameter: {beta} - should be in [0.0, 1.0)")
        if not 0.0 <= eps:
            raise ValueError(f"Invalid epsilon value: {eps} - should be >= 0.0")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "correct_bias": correct_bias,
        }
        stored = precision.checked(
            state_dtype, master_weights, stochastic_rounding, seed, type(self).__name__
        )
        super().__init__(params, defaults, backend, max_grad_norm, stored)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # torch's groups do not have it
            group.setdefault("correct_bias", self.defaults.get("correct_bias", True))

    def _check_param(self, where: check.Where, group: Group, param: Tensor, grad: Tensor) -> None:
        if grad.is_sparse or param.is_sparse:
            raise RuntimeError(
                "Adam does not support sparse gradients, please consider SparseAdam instead: "
                f"{type(self).__name__}: {where}"
            )
        super()._check_param(where, group, param, grad)

    def _new_state(self, group: Group, param: Tensor, grad: Tensor) -> State:
        keys = self._state_shapes(group, param)
        return {
            k: torch.zeros_like(param, dtype=self._dtype_of_state(k, param.dtype, param))
            for k in keys
        }

    def _state_shapes(self, group: Group, param: Tensor) -> dict[str, torch.Size]:
        return {"exp_avg": param.shape, "exp_avg_sq": param.shape}

    def _rule(self, group: Group, param: Tensor) -> str:
        return "adamw_decay_last"

    def _scalars(self, group: Group, step: Any, dtype: torch.dtype) -> dict[str, Any]:
        scalar, formula = for_steps(step, adamw.transformers_scalars)
        return formula(
            step,
            lr=self._lr_at(step, group, scalar),
            beta1=scalar(group["betas"][0]),
            beta2=scalar(group["betas"][1]),
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            correct_bias=group["correct_bias"],
        )

    def _lr_at(self, step: Any, group: Group, scalar: Callable[[Any], Any]) -> Any:
        """The learning rate of a step, or of many if `step` is a tensor."""
        return scalar(group["lr"])
