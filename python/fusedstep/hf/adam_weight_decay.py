"""The AdamWeightDecay that transformers had for TensorFlow: Keras' Adam, decay first, clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .. import check
from ..optim import gradients
from ..optim.base import Group
from ..plan.bucket import Member
from .adamw import AdamW


class AdamWeightDecay(AdamW):
    """Adam with decoupled decay and clipped gradients: ``transformers.AdamWeightDecay`` with
    torch's argument names and Keras' defaults.

        g = g clipnorm / max(norm(g), clipnorm), or with the norm of all gradients as one vector
        m = beta1 m + (1 - beta1) g               v = beta2 v + (1 - beta2) g^2
        size = lr sqrt(1 - beta2^t) / (1 - beta1^t)
        p = (1 - lr weight_decay) p - size m / (sqrt(v) + eps)

    ``fusedstep.optim.param_groups`` chooses what decays. Clipping changes the gradients in place,
    as ``torch.nn.utils.clip_grad_norm_`` does, with no host sync. If a norm is infinite, finite
    gradients become 0 and infinite ones nan. If it is nan, all become nan.

    Arguments:
        clipnorm: the largest norm of each gradient. Each group may have its own value.
        global_clipnorm: the largest norm of all gradients of all groups together.
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
        >>> opt = AdamWeightDecay(model.parameters(), weight_decay=0.01, global_clipnorm=1.0)
        >>> model(torch.ones(8)).sum().backward()
        >>> opt.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-7,
        weight_decay: float = 0.0,
        clipnorm: float | None = None,
        global_clipnorm: float | None = None,
        *,
        max_grad_norm: float | None = None,
        state_dtype: torch.dtype | str | None = None,
        master_weights: bool | int = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        backend: str | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            no_deprecation_warning=True,
            max_grad_norm=max_grad_norm,
            state_dtype=state_dtype,
            master_weights=master_weights,
            stochastic_rounding=stochastic_rounding,
            seed=seed,
            backend=backend,
        )
        limits = {"clipnorm": clipnorm, "global_clipnorm": global_clipnorm}
        for key, value in limits.items():
            self.defaults[key] = check.number(value, key)
        self._complete_groups()
        for group in self.param_groups:
            self._check_group(group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._complete_groups()

    def _complete_groups(self) -> None:
        """Keeps the limits in the groups, which are saved and loaded. Groups that another optimizer
        saved get the constructor's limits."""
        for group in self.param_groups:
            for key in ("clipnorm", "global_clipnorm"):
                group[key] = check.number(group.get(key, self.defaults[key]), key)

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        for key in ("clipnorm", "global_clipnorm"):
            limit = group[key]
            if limit is not None and not (
                isinstance(limit, Real) and 0.0 < float(limit) < math.inf
            ):
                raise ValueError(
                    f"{key} should be a finite number above 0, or None for no clipping, "
                    f"but is: {limit!r}"
                )
            if limit is not None and self.max_grad_norm is not None:
                raise ValueError(
                    f"{key}={limit} and max_grad_norm={self.max_grad_norm} exclude each other: "
                    "one writes the gradients, the other clips inside the step. Leave one of them "
                    "None."
                )
        if group["clipnorm"] is not None and group["global_clipnorm"] is not None:
            raise ValueError(
                f"clipnorm={group['clipnorm']} and global_clipnorm={group['global_clipnorm']} "
                "exclude each other. Leave one of them None."
            )
        if group["global_clipnorm"] != self.param_groups[0]["global_clipnorm"]:
            raise ValueError(
                "global_clipnorm bounds the gradients of all groups together, but groups have "
                f"{self.param_groups[0]['global_clipnorm']} and {group['global_clipnorm']}. Give "
                "all groups the same value."
            )
        clips = group["clipnorm"] is not None or group["global_clipnorm"] is not None
        if clips and getattr(self, "grad_scale", None) is not None:
            raise RuntimeError(
                "AdamWeightDecay would clip gradients that are still multiplied by grad_scale. "
                "Call GradScaler.unscale_(optimizer) before the step, and leave grad_scale None."
            )

    def _prepare_gradients(self, members: list[Member]) -> None:
        together = self.param_groups[0]["global_clipnorm"]
        if together is not None:
            own = gradients.writable(member.param for member in members)
            self._norms_of(self.param_groups).clip_together(own, together)
        for index, group in enumerate(self.param_groups):
            if group["clipnorm"] is not None:
                own = gradients.writable(m.param for m in members if m.group == index)
                self._norms_of([group]).clip_each(own, group["clipnorm"])

    def _norms_of(self, groups: list[Group]) -> gradients.Norms:
        return gradients.Norms(param for group in groups for param in group["params"])

    def _rule(self, group: Group, param: Tensor) -> str:
        return "adamw"
