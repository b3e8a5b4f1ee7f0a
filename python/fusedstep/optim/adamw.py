"""torch.optim.AdamW, in one launch for each device and set of dtypes, whatever the groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ..plan.launcher import BackendName
from . import precision
from .adam import Adam
from .shared_arguments import with_shared_arguments


@with_shared_arguments
class AdamW(Adam):
    """Adam with decoupled weight decay: same arguments, states and errors as ``torch.optim.AdamW``.

        m = beta1 m + (1 - beta1) g                    v = beta2 v + (1 - beta2) g^2
        p = (1 - lr weight_decay) p - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps)

    Arguments:
        lr: the learning rate, a number or a tensor.
        betas: how much of the averages of g and of its square each step keeps. Numbers or tensors.
        eps: added to the divisor.
        weight_decay: each step takes ``lr weight_decay`` of p away.
        amsgrad: divides by the largest v so far.

    Example:
        >>> model = torch.nn.Linear(8, 8)
        >>> opt = AdamW(model.parameters(), lr=1e-3)
        >>> model(torch.ones(8)).sum().backward()
        >>> opt.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
        state_dtype: precision.StateDtype = None,
        master_weights: bool | int = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        backend: BackendName | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
            max_grad_norm=max_grad_norm,
            state_dtype=state_dtype,
            master_weights=master_weights,
            stochastic_rounding=stochastic_rounding,
            seed=seed,
            backend=backend,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True
