"""torch.optim.AdamW, in one launch for each device and set of dtypes, whatever the groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .. import check
from ..plan.launcher import BackendName
from ..rules import adamw
from . import precision
from .base import FusedOptimizer, Group, State
from .hyperparams import for_steps
from .limits import BETA, NOT_NEGATIVE, Limits

# The names of the states, without amsgrad and with it.
KEYS = (("exp_avg", "exp_avg_sq"), ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))


class AdamW(FusedOptimizer):
    """Adam with decoupled weight decay: same arguments, states and errors as ``torch.optim.AdamW``.

        m = beta1 m + (1 - beta1) g                    v = beta2 v + (1 - beta2) g^2
        p = (1 - lr weight_decay) p - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps)

    ``foreach`` and ``fused`` are accepted and kept, because checkpoints and configs hold them. They
    do not change how a step is computed. With ``fused=True`` a ``GradScaler`` leaves the unscaling
    to the step. With ``capturable=True`` (GPU) a step never waits for the GPU, and can be captured
    in a CUDA graph after one step outside it. A graph replays the numbers it was captured with, so
    a learning rate that changes must be a tensor on the GPU.

    Arguments:
        max_grad_norm: clips inside the step: every g is multiplied by
            ``min(1, max_grad_norm / (norm + 1e-6))``, where ``norm`` is that of all gradients as
            one vector. ``.grad`` is not written. ``grad_norm`` then is the norm as a tensor on the
            device. It may be changed between steps, and a state dict does not have it.
        state_dtype: of the states: ``torch.float32``, ``torch.bfloat16``, or ``"int8"`` (8 bits,
            and a float32 scale for each 128 numbers of a row); None: the parameter's, and float32
            if there are master weights. A checkpoint of another dtype is converted when it is
            loaded.
        master_weights: True: 16-bit parameters have float32 master weights, and train as float32
            ones do. Beside bfloat16 an int16 rest is kept, beside float16 a float32 copy. 8: a rest
            of 8 bits, so a master weight of 24.
        stochastic_rounding: rounds bfloat16 parameters and states up or down by chance, so that
            small updates count on average. The noise depends on ``seed``, step, parameter and place
            alone.
        seed: of the noise.
        backend: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"triton"``, ``"reference"``; by default
            ``FUSEDSTEP_BACKEND`` or auto.

    Example:
        >>> model = torch.nn.Linear(8, 8)
        >>> opt = AdamW(model.parameters(), lr=1e-3)
        >>> model(torch.ones(8)).sum().backward()
        >>> opt.step()
    """

    scalars_on_tensors = True
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
        lr, betas = check.one_number(lr, "lr"), check.two_numbers(betas, "betas")
        eps = check.one_number(eps, "eps")
        weight_decay = check.one_number(weight_decay, "weight_decay")
        fixed_for_foreach = bool(foreach) and not capturable
        if isinstance(lr, Tensor):
            if fixed_for_foreach:
                raise ValueError(
                    "lr as a Tensor is not supported for capturable=False and foreach=True"
                )
            if lr.numel() != 1:
                raise ValueError("Tensor lr must be 1-element")
        if not 0.0 <= lr:
            raise ValueError(f"Invalid learning rate: {lr}")
        if not 0.0 <= eps:
            raise ValueError(f"Invalid epsilon value: {eps}")
        for index in (0, 1):
            if not 0.0 <= betas[index] < 1.0:
                raise ValueError(f"Invalid beta parameter at index {index}: {betas[index]}")
        if not 0.0 <= weight_decay:
            raise ValueError(f"Invalid weight_decay value: {weight_decay}")
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
        if fused and differentiable:
            raise RuntimeError("`fused` does not support `differentiable`")
        if fused and foreach:
            raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
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
            "decoupled_weight_decay": True,
        }
        stored = precision.checked(
            state_dtype, master_weights, stochastic_rounding, seed, type(self).__name__
        )
        super().__init__(params, defaults, backend, max_grad_norm, stored)
        for group in self.param_groups:
            self._check_group(group)
        if fused:
            self._step_supports_amp_scaling = True

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for flag in ("amsgrad", "maximize", "capturable", "differentiable"):
                group.setdefault(flag, False)
            group.setdefault("foreach", None)
            group.setdefault("fused", None)
            group["decoupled_weight_decay"] = True

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        if group["differentiable"]:
            raise RuntimeError(
                "differentiable=True is not supported: a fused step cannot be differentiated "
                "through. Use torch.optim.AdamW(..., differentiable=True)."
            )

    def _check_param(self, where: check.Where, group: Group, param: Tensor, grad: Tensor) -> None:
        if grad.is_sparse or param.is_sparse:
            raise RuntimeError(
                "Adam does not support sparse gradients, please consider SparseAdam instead: "
                f"AdamW: {where}"
            )
        super()._check_param(where, group, param, grad)
        if group["fused"] and not torch.is_floating_point(param):
            raise RuntimeError(
                "`fused=True` requires all the params to be floating point Tensors of supported "
                f"devices, as in torch. AdamW: {where}"
            )

    def _new_state(self, group: Group, param: Tensor, grad: Tensor) -> State:
        keys = KEYS[bool(group["amsgrad"])]
        return {
            k: torch.zeros_like(param, dtype=self._dtype_of_state(k, param.dtype, param))
            for k in keys
        }

    def _state_shapes(self, group: Group, param: Tensor) -> dict[str, torch.Size]:
        return dict.fromkeys(KEYS[bool(group["amsgrad"])], param.shape)

    def _counts_on_device(self, group: Group) -> bool:
        return bool(group["capturable"] or group["fused"])

    def _choice(self, group: Group) -> object:
        return bool(group["amsgrad"]), bool(group["capturable"]), bool(group["fused"])

    def _rule(self, group: Group, param: Tensor) -> str:
        return "adamw_amsgrad" if group["amsgrad"] else "adamw"

    def _scalars(self, group: Group, step: Any, dtype: torch.dtype) -> dict[str, Any]:
        scalar, formula = for_steps(step, adamw.torch_scalars)
        beta1, beta2 = group["betas"]
        return formula(
            step,
            lr=scalar(group["lr"]),
            beta1=scalar(beta1),
            beta2=scalar(beta2),
            eps=scalar(group["eps"]),
            weight_decay=scalar(group["weight_decay"]),
        )
