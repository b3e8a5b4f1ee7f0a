"""transformers.optimization.Adafactor, in a constant number of launches for all parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .. import check
from ..optim import precision
from ..optim.base import Group, State
from ..optim.factored import FactoredOptimizer
from ..optim.hyperparams import for_steps
from ..optim.limits import ANY_NUMBER, BETA, NOT_NEGATIVE, NOT_POSITIVE, POSITIVE, Limits
from ..optim.shared_arguments import with_shared_arguments
from ..plan import flat, shards
from ..plan.launcher import BackendName
from ..rules import adafactor


@with_shared_arguments
class Adafactor(FactoredOptimizer):
    """Adafactor: same arguments and states as ``transformers.optimization.Adafactor``.

        rho   = min(1e-2 or 1e-6 t, 1/sqrt(t)) if relative_step else lr
        alpha = rho max(eps2, rms(p)) if scale_parameter else rho;      beta2 = 1 - t^decay_rate
        R = beta2 R + (1-beta2) mean_j(g^2 + eps1),   C = beta2 C + (1-beta2) mean_i(g^2 + eps1)
        u = g / sqrt(R C / mean(R)),   u = alpha u / max(1, rms(u)/clip_threshold)
        beta1 given:  m = beta1 m + (1-beta1) u,  u = m
        p = (1 - weight_decay alpha) p - u

    All arithmetic and all states are float32 or wider. Give either ``lr`` or ``relative_step=True``
    (the default).

    Arguments:
        lr: the step size, a number or a tensor; None with ``relative_step``.
        eps: ``eps1``, added to every g^2, and ``eps2``, the least rms(p) that scales the step.
        clip_threshold: an update with a larger rms is scaled down to this one.
        decay_rate: how fast beta2 goes to 1 as the steps go on; not positive.
        beta1: keeps a momentum of the updates, as large as the parameters; None: there is none.
        weight_decay: each step takes ``weight_decay alpha p`` away.
        scale_parameter: scales the step by the rms of the parameter.
        relative_step: computes the step size from the number of steps t, and ignores ``lr``.
        warmup_init: the step size starts at 1e-6 t instead of 1e-2; only with ``relative_step``.
        state_dtype: of the momentum: ``torch.float32`` (also None), ``torch.bfloat16``, or
            ``"int8"`` (8 bits, and a float32 scale for each 128 numbers of a row). Second moments
            are always float32: they are few. A checkpoint of another dtype is converted when it is
            loaded.

    Example:
        >>> model = torch.nn.Linear(8, 8)
        >>> opt = Adafactor(model.parameters(), lr=1e-3, scale_parameter=False, relative_step=False)
        >>> model(torch.ones(8)).sum().backward()
        >>> opt.step()
    """

    steps_are_tensors = False
    scalars_on_tensors = True
    reduced = {"exp_avg_sq_row": -1, "exp_avg_sq_col": -2}  # noqa: RUF012 (never changed)
    is_capped = False
    limits = Limits(
        eps=(NOT_NEGATIVE, NOT_NEGATIVE),
        clip_threshold=POSITIVE,
        decay_rate=NOT_POSITIVE,
        beta1=BETA._replace(may_be_none=True),
        weight_decay=ANY_NUMBER,
    )
    lr_limits = Limits(lr=NOT_NEGATIVE)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor | None = None,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = True,
        relative_step: bool = True,
        warmup_init: bool = False,
        *,
        max_grad_norm: float | None = None,
        state_dtype: precision.StateDtype = None,
        master_weights: bool | int = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        backend: BackendName | None = None,
    ) -> None:
        if lr is not None and relative_step:
            raise ValueError("Cannot combine manual `lr` and `relative_step=True` options")
        if warmup_init and not relative_step:
            raise ValueError("`warmup_init=True` requires `relative_step=True`")
        defaults = {
            "lr": check.number(lr, "lr"),
            "eps": check.number(eps, "eps"),
            "clip_threshold": check.number(clip_threshold, "clip_threshold"),
            "decay_rate": check.number(decay_rate, "decay_rate"),
            "beta1": check.number(beta1, "beta1"),
            "weight_decay": check.number(weight_decay, "weight_decay"),
            "scale_parameter": scale_parameter,
            "relative_step": relative_step,
            "warmup_init": warmup_init,
        }
        stored = precision.checked(
            state_dtype, master_weights, stochastic_rounding, seed, type(self).__name__
        )
        super().__init__(params, defaults, backend, max_grad_norm, stored)

    @staticmethod
    def _get_lr(param_group: Group, param_state: State) -> Any:
        """The step size of a parameter at its last step. AdafactorSchedule shows it."""
        rho = param_group["lr"]
        if param_group["relative_step"]:
            rho = adafactor.relative_step_size(param_state["step"], param_group["warmup_init"])
        if not param_group["scale_parameter"]:
            return 1.0 * rho
        least, rms = param_group["eps"][1], param_state["RMS"]
        if isinstance(rms, Tensor):  # it may be on a device, and this must not wait for it
            return torch.where(rms > least, rms, least) * rho
        return max(least, rms) * rho

    def _waits_for_device(self, group: Group) -> bool:
        # With relative_step the step does not read lr: AdafactorSchedule shows the step size there.
        return not group["relative_step"] and super()._waits_for_device(group)

    def _moves_without_lr(self, group: Group) -> bool:
        decays = group.get("relative_step") and group.get("weight_decay") != 0.0
        return bool(decays) or super()._moves_without_lr(group)

    def _check_limits(self, group: Group) -> None:
        super()._check_limits(group)
        # With relative_step the step does not read lr.
        if not group["relative_step"] and group["lr"] is not None:
            self.lr_limits.check(group, self._name_group)

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        if group["lr"] is None and not group["relative_step"]:
            raise ValueError(
                "Adafactor: lr=None needs relative_step=True; give lr, or relative_step=True"
            )

    def _new_state(self, group: Group, param: Tensor, grad: Tensor) -> State:
        usual = grad.dtype if grad.dtype == torch.float64 else torch.float32
        shapes = self._state_shapes(group, param)
        like = grad if type(param) in shards.PLAIN else shards.state_model(param, grad)
        state: State = {}
        for key in sorted(shapes):  # transformers' order
            dtype = self._dtype_of_state(key, usual, param)
            if key in self.reduced:
                state[key] = shards.zeros(param, grad, shapes[key], dtype, self.reduced[key])
            else:
                state[key] = torch.zeros_like(like, dtype=dtype)
        state["RMS"] = 0
        return state

    def _dtype_after_loading(self, key: str, saved: torch.dtype, param: Tensor) -> torch.dtype:
        # If transformers saved a checkpoint right after loading one, its states are rounded to the
        # parameters' dtype. transformers' next step would widen them.
        widened = torch.promote_types(saved, torch.promote_types(param.dtype, torch.float32))
        return self._dtype_of_state(key, widened, param)

    def _state_shapes(self, group: Group, param: Tensor) -> dict[str, torch.Size]:
        momentum = {} if group["beta1"] is None else {"exp_avg": param.shape}
        # A flat piece is a part of a shape. There may be many parameters, and few are flat.
        is_flat = flat.DECLARED or "_fsdp_flattened" in param.__dict__
        shape = flat.whole_shape(param) if is_flat else param.shape
        if len(shape) < 2:
            return {"exp_avg_sq": param.shape, **momentum}
        *batch, rows, cols = shape
        return {
            "exp_avg_sq_row": torch.Size((*batch, rows)),
            "exp_avg_sq_col": torch.Size((*batch, cols)),
            **momentum,
        }

    def _choice(self, group: Group) -> object:
        return group["beta1"] is None

    def _rule(self, group: Group, param: Tensor) -> str:
        return "adafactor" if group["beta1"] is None else "adafactor_momentum"

    def _rms_key(self) -> str:
        return "RMS"

    def _scalars(self, group: Group, step: Any, dtype: torch.dtype) -> dict[str, Any]:
        scalar, formula = for_steps(step, adafactor.transformers_scalars)
        return formula(
            step,
            lr=None if group["relative_step"] else scalar(group["lr"]),
            eps=group["eps"],
            clip_threshold=group["clip_threshold"],
            decay_rate=group["decay_rate"],
            beta1=group["beta1"],
            weight_decay=group["weight_decay"],
            scale_parameter=group["scale_parameter"],
            relative_step=group["relative_step"],
            warmup_init=group["warmup_init"],
        )
