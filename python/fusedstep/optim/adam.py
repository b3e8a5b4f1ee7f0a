"""torch.optim.Adam, in one launch for each device and set of dtypes, whatever the groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .. import check
from ..plan.launcher import BackendName
from ..rules import adam, adamw
from . import peer_errors, precision
from .base import Group
from .elementwise import ElementwiseOptimizer
from .hyperparams import for_steps
from .limits import BETA, NOT_NEGATIVE, Limits
from .shared_arguments import with_shared_arguments

# The names of the states, without amsgrad and with it.
KEYS = (("exp_avg", "exp_avg_sq"), ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))


@with_shared_arguments
class Adam(ElementwiseOptimizer):
    """Adam: same arguments, states and errors as ``torch.optim.Adam``.

        g = g + weight_decay p
        m = beta1 m + (1 - beta1) g                    v = beta2 v + (1 - beta2) g^2
        p = p - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps)

    Arguments:
        lr: the learning rate, a number or a tensor.
        betas: how much of the averages of g and of its square each step keeps. Numbers or tensors.
        eps: added to the divisor.
        weight_decay: added to g as ``weight_decay p`` (an L2 penalty).
        amsgrad: divides by the largest v so far.
        decoupled_weight_decay: decays p as ``fusedstep.optim.AdamW`` does, and leaves g alone.

    Example:
        >>> model = torch.nn.Linear(8, 8)
        >>> opt = Adam(model.parameters(), lr=1e-3)
        >>> model(torch.ones(8)).sum().backward()
        >>> opt.step()
    """

    refuses_sparse = "Adam does not support sparse gradients, please consider SparseAdam instead"
    squares = frozenset(("exp_avg_sq", "max_exp_avg_sq"))
    limits = Limits(
        lr=NOT_NEGATIVE, betas=(BETA, BETA), eps=NOT_NEGATIVE, weight_decay=NOT_NEGATIVE
    )

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
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
        fixed_for_foreach = bool(foreach) and not capturable
        if isinstance(lr, Tensor) and fixed_for_foreach:
            raise ValueError(
                "lr as a Tensor is not supported for capturable=False and foreach=True"
            )
        peer_errors.check_lr(lr)
        peer_errors.check_not_negative(epsilon=eps)
        peer_errors.check_betas(betas)
        peer_errors.check_not_negative(weight_decay=weight_decay)
        if not any(all(isinstance(beta, kind) for beta in betas) for kind in (float, Tensor)):
            raise ValueError("betas must be either both floats or both Tensors")
        for index, beta in enumerate(betas):
            if isinstance(beta, Tensor):
                if fixed_for_foreach:
                    raise ValueError(
                        f"betas[{index}] as a Tensor is not supported for capturable=False "
                        "and foreach=True"
                    )
                if beta.numel() != 1:
                    raise ValueError(f"Tensor betas[{index}] must be 1-element")
        peer_errors.check_ways(fused, foreach, differentiable)
        defaults = {
            "lr": lr,
            "betas": tuple(b.squeeze() if isinstance(b, Tensor) else b for b in betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        stored = precision.checked(
            state_dtype, master_weights, stochastic_rounding, seed, type(self).__name__
        )
        super().__init__(params, defaults, backend, max_grad_norm, stored)

    def _keys(self, group: Group) -> tuple[str, ...]:
        return KEYS[bool(group["amsgrad"])]

    def _rule(self, group: Group, param: Tensor) -> str:
        name = "adamw" if group["decoupled_weight_decay"] else "adam"
        return f"{name}_amsgrad" if group["amsgrad"] else name

    def _scalars(self, group: Group, step: Any, dtype: torch.dtype) -> dict[str, Any]:
        decoupled = group["decoupled_weight_decay"]
        scalar, formula = for_steps(step, adamw.torch_scalars if decoupled else adam.scalars)
        beta1, beta2 = group["betas"]
        return formula(
            step,
            lr=scalar(group["lr"]),
            beta1=scalar(beta1),
            beta2=scalar(beta2),
            eps=scalar(group["eps"]),
            weight_decay=scalar(group["weight_decay"]),
        )
