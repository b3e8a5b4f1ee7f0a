"""The AdamWeightDecay that transformers had for TensorFlow: Keras' Adam, decay first, clipping."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .. import check
from ..optim import gradients
from ..optim.base import Group
from ..optim.precision import StateDtype
from ..optim.shared_arguments import with_shared_arguments
from ..plan.bucket import Member
from ..plan.launcher import BackendName
from . import tensorflow_names
from .adamw import AdamW
from .tensorflow_names import BETAS, DECAY, EPS, LR

# What the groups have besides AdamW's. A checkpoint of another optimizer may lack it.
LIMITS = ("clipvalue", "clipnorm", "global_clipnorm")
MORE = (*LIMITS, "amsgrad", "decay")
STATES = (("exp_avg", "exp_avg_sq"), ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))


@with_shared_arguments
class AdamWeightDecay(AdamW):
    """Adam with decoupled decay and clipped gradients: ``transformers.AdamWeightDecay`` with
    torch's argument names or TensorFlow's, and Keras' defaults.

        g = min(max(g, -clipvalue), clipvalue)
        g = g clipnorm / max(norm(g), clipnorm), or with the norm of all gradients as one vector
        m = beta1 m + (1 - beta1) g               v = beta2 v + (1 - beta2) g^2
        lr_t = lr / (1 + decay (t - 1))           size = lr_t sqrt(1 - beta2^t) / (1 - beta1^t)
        p = (1 - lr_t weight_decay) p - size m / (sqrt(v) + eps)
        amsgrad:  w = max(w, v) takes the place of v in the last line

    ``fusedstep.optim.param_groups`` chooses what decays, or the two patterns below. Clipping
    changes the gradients in place, as ``torch.nn.utils.clip_grad_norm_`` does, with no host sync.
    If a norm is infinite, finite gradients become 0 and infinite ones nan. If it is nan, all become
    nan.

    Arguments:
        lr: the learning rate, a number or a tensor.
        betas: how much of the averages of g and of its square each step keeps.
        eps: added to the divisor, after the bias correction.
        weight_decay: each step takes ``lr_t weight_decay`` of p away.
        clipnorm: the largest norm of each gradient. Each group may have its own value.
        global_clipnorm: the largest norm of all gradients of all groups together.
        learning_rate, epsilon, weight_decay_rate: TensorFlow's names of ``lr``, ``eps`` and
            ``weight_decay``. Both names of one argument are an error.
        beta_1, beta_2: TensorFlow's names of ``betas``.
        amsgrad: divides by the root of the largest v so far.
        clipvalue: the largest absolute value of each number of a gradient.
        decay: how fast lr falls. t counts the steps of each parameter.
        include_in_weight_decay, exclude_from_weight_decay: regular expressions, searched in the
            names of parameters, which must be given as pairs: ``model.named_parameters()``. What
            is included decays, else what is excluded does not, else it decays.
        name: what ``get_config`` says; it has no effect.

    Example:
        >>> model = torch.nn.Linear(8, 8)
        >>> opt = AdamWeightDecay(model.parameters(), weight_decay=0.01, global_clipnorm=1.0)
        >>> model(torch.ones(8)).sum().backward()
        >>> opt.step()
    """

    # Only `get_config` reads these. Pickles of earlier versions lack them.
    _patterns: tuple[Any, Any] = (None, None)
    _name = "AdamWeightDecay"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = LR,
        betas: tuple[float, float] = BETAS,
        eps: float = EPS,
        weight_decay: float = DECAY,
        clipnorm: float | None = None,
        global_clipnorm: float | None = None,
        *,
        learning_rate: float | Tensor | None = None,
        beta_1: float | None = None,
        beta_2: float | None = None,
        epsilon: float | None = None,
        amsgrad: bool = False,
        weight_decay_rate: float | None = None,
        include_in_weight_decay: str | Iterable[str] | None = None,
        exclude_from_weight_decay: str | Iterable[str] | None = None,
        clipvalue: float | None = None,
        decay: float = 0.0,
        name: str = "AdamWeightDecay",
        max_grad_norm: float | None = None,
        state_dtype: StateDtype = None,
        master_weights: bool | int = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        backend: BackendName | None = None,
    ) -> None:
        lr = tensorflow_names.number("lr", lr, LR, "learning_rate", learning_rate)
        betas = tensorflow_names.betas(betas, beta_1, beta_2)
        eps = tensorflow_names.number("eps", eps, EPS, "epsilon", epsilon)
        weight_decay = tensorflow_names.number(
            "weight_decay", weight_decay, DECAY, "weight_decay_rate", weight_decay_rate
        )
        patterns = include_in_weight_decay, exclude_from_weight_decay
        super().__init__(
            tensorflow_names.split(params, *patterns),
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
        self._patterns, self._name = patterns, name
        values = (clipvalue, clipnorm, global_clipnorm, amsgrad, decay)
        for key, value in zip(MORE, values, strict=True):
            self.defaults[key] = check.number(value, key)
        self._complete_groups()
        for group in self.param_groups:
            self._check_group(group)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], params: Iterable[Any], **more: Any
    ) -> AdamWeightDecay:
        """An optimizer with the settings that ``get_config`` returned, here or in TensorFlow.

        Arguments:
            params: as for the constructor. TensorFlow's function does not take them.
            more: settings that replace the config's, and those that it lacks.

        Example:
            >>> params = torch.nn.Linear(8, 8).parameters()
            >>> opt = AdamWeightDecay.from_config({"learning_rate": 0.1, "beta_1": 0.8}, params)
            >>> opt.defaults["betas"]
            (0.8, 0.999)
        """
        return cls(params, **tensorflow_names.settings_of({**config, **more}, cls))

    def get_config(self) -> dict[str, Any]:
        """The settings that the optimizer was made with, by TensorFlow's names."""
        own = self.defaults
        include, exclude = self._patterns
        config = {
            "name": self._name,
            "learning_rate": own["lr"],
            "decay": own["decay"],
            "beta_1": own["betas"][0],
            "beta_2": own["betas"][1],
            "epsilon": own["eps"],
            "amsgrad": own["amsgrad"],
            "weight_decay_rate": own["weight_decay"],
        }
        further = {key: own[key] for key in LIMITS}
        further |= {"include_in_weight_decay": include, "exclude_from_weight_decay": exclude}
        return {**config, **{key: value for key, value in further.items() if value is not None}}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_patterns": self._patterns, "_name": self._name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._complete_groups()

    def _complete_groups(self) -> None:
        """Keeps the options in the groups, which are saved and loaded. Groups that another
        optimizer saved get the constructor's."""
        for group in self.param_groups:
            for key in MORE:
                group[key] = check.number(group.get(key, self.defaults.get(key)), key)

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        for key in LIMITS:
            self._check_limit(group, key)
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
        decay = group["decay"]
        if not (isinstance(decay, Real) and 0.0 <= float(decay) < math.inf):
            raise ValueError(f"decay should be a finite number of 0 or more but is: {decay!r}")
        clips = any(group[key] is not None for key in LIMITS)
        if clips and getattr(self, "grad_scale", None) is not None:
            raise RuntimeError(
                "AdamWeightDecay would clip gradients that are still multiplied by grad_scale. "
                "Call GradScaler.unscale_(optimizer) before the step, and leave grad_scale None."
            )

    def _check_limit(self, group: Group, key: str) -> None:
        limit = group[key]
        if limit is not None and not (isinstance(limit, Real) and 0.0 < float(limit) < math.inf):
            raise ValueError(
                f"{key} should be a finite number above 0, or None for no clipping, "
                f"but is: {limit!r}"
            )
        if limit is not None and self.max_grad_norm is not None:
            raise ValueError(
                f"{key}={limit} and max_grad_norm={self.max_grad_norm} exclude each other: "
                "one writes the gradients, the other clips inside the step. Leave one of them None."
            )

    def _prepare_gradients(self, members: list[Member]) -> None:
        for index, group in enumerate(self.param_groups):
            if group["clipvalue"] is not None:
                own = gradients.writable(m.param for m in members if m.group == index)
                gradients.clip_values(own.kinds, group["clipvalue"])
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

    def _state_shapes(self, group: Group, param: Tensor) -> dict[str, torch.Size]:
        return dict.fromkeys(STATES[bool(group["amsgrad"])], param.shape)

    def _choice(self, group: Group) -> object:
        return bool(group["amsgrad"])

    def _rule(self, group: Group, param: Tensor) -> str:
        return "adamw_amsgrad" if group["amsgrad"] else "adamw"

    def _lr_at(self, step: Any, group: Group, scalar: Callable[[Any], Any]) -> Any:
        lr = super()._lr_at(step, group, scalar)
        return lr / (1.0 + group["decay"] * (step - 1.0)) if group["decay"] else lr
