"""What torch's elementwise optimizers have in common: flags in their groups, states of zeros."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import check
from ..plan import shards
from ..plan.launcher import BackendName
from ..plan.staging import real
from ..plan.storage import SCALE
from ..stored_numbers import LEVELS
from .base import FusedOptimizer, Group, State
from .precision import Precision

# What groups of old checkpoints may lack.
FLAGS: dict[str, Any] = {
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
    "amsgrad": False,
    "centered": False,
    "momentum": 0,
    "nesterov": False,
    "decoupled_weight_decay": False,
}


class ElementwiseOptimizer(FusedOptimizer):
    """A subclass names its states (`_keys`) and their first values, if these are not 0 (`_first`),
    besides its rule and the scalars."""

    scalars_on_tensors = True
    refuses_sparse = "{} does not support sparse gradients"  # the peer's words

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        backend: BackendName | None,
        max_grad_norm: float | None,
        precision: Precision,
    ) -> None:
        super().__init__(params, defaults, backend, max_grad_norm, precision)
        for group in self.param_groups:
            self._check_group(group)
        if defaults.get("fused"):
            self._step_supports_amp_scaling = True

    def _keys(self, group: Group) -> tuple[str, ...]:
        """The names of the states, in the rule's order."""
        raise NotImplementedError

    def _first(self, group: Group, key: str) -> float | Tensor:
        """What a state is filled with at the first step."""
        return 0.0

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for flag in FLAGS.keys() & self.defaults.keys():
            for group in self.param_groups:
                group.setdefault(flag, FLAGS[flag])

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        if group["differentiable"]:
            name = type(self).__name__
            instead = f"Use torch.optim.{name}(..., differentiable=True)."
            raise RuntimeError(
                "differentiable=True is not supported: a fused step cannot be differentiated "
                f"through. {instead if hasattr(torch.optim, name) else 'Leave it False.'}"
            )

    def _check_param(self, where: check.Where, group: Group, param: Tensor, grad: Tensor) -> None:
        if grad.is_sparse or param.is_sparse:
            name = type(self).__name__
            raise RuntimeError(f"{self.refuses_sparse.format(name)}: {name}: {where}")
        super()._check_param(where, group, param, grad)
        if "fused" in group and group["fused"] and not torch.is_floating_point(param):
            raise RuntimeError(
                "`fused=True` requires all the params to be floating point Tensors of supported "
                f"devices, as in torch. {type(self).__name__}: {where}"
            )

    def _new_state(self, group: Group, param: Tensor, grad: Tensor) -> State:
        if type(self)._first is not ElementwiseOptimizer._first:
            return {key: self._filled(group, key, param) for key in self._keys(group)}
        return {
            key: torch.zeros_like(param, dtype=self._dtype_of_state(key, param.dtype, param))
            for key in self._keys(group)
        }

    def _filled(self, group: Group, key: str, param: Tensor) -> Tensor:
        """A state at the first step. Equal numbers have the largest code of 8 bits."""
        dtype, first = self._dtype_of_state(key, param.dtype, param), self._first(group, key)
        if not isinstance(first, Tensor) and first == 0.0:
            return torch.zeros_like(param, dtype=dtype)
        made = torch.empty_like(param, dtype=dtype)
        numbers = real(shards.local(made))
        numbers.fill_(LEVELS[dtype] if dtype in LEVELS else as_number(first))
        return made

    def _new_companions(self, group: Group, param: Tensor) -> State:
        made = super()._new_companions(group, param)
        for key in self._keys(group) if made else ():
            if key + SCALE in made:
                shards.local(made[key + SCALE]).fill_(as_number(self._first(group, key)))
        return made

    def _state_shapes(self, group: Group, param: Tensor) -> dict[str, torch.Size]:
        return dict.fromkeys(self._keys(group), param.shape)

    def _counts_on_device(self, group: Group) -> bool:
        return bool(group.get("capturable") or group.get("fused"))

    def _choice(self, group: Group) -> object:
        get = group.get
        flags = bool(get("capturable")), bool(get("fused")), bool(get("decoupled_weight_decay"))
        return self._keys(group), flags


def as_number(value: float | Tensor) -> float | Tensor:
    """What `fill_` takes: a number or a tensor of no dimensions."""
    return value.detach().reshape(()) if isinstance(value, Tensor) else value
