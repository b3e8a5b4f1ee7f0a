"""What both dialects of Adafactor share: they refuse what has lost its rows and columns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ..check import Where
from ..plan import flat
from ..plan.exchange import Exchange
from ..plan.exchange_layout import ExchangeLayout, Part
from .base import FusedOptimizer, Group
from .flat_states import refuse_torch

MOMENTUM = "exp_avg"  # the key of the only state that is as large as a matrix


class FactoredOptimizer(FusedOptimizer):
    """Base of the Adafactors."""

    _layout: ExchangeLayout | None = None  # of the last step with sharded parameters

    def _exchange_layout(self) -> ExchangeLayout | None:
        """The messages of the sharded parameters, with gradients or without; None if there are
        none. Processes agree on it when it is new, so all of them must be here at the same step."""
        if not self._may_share():
            return None
        parts = [
            Part(where, param, shard)
            for where, _, param in self._parameters()
            if (shard := self._shard_of(param)) is not None
        ]
        if not parts:
            self._layout = None
        elif self._layout is None or not self._layout.is_of(parts):
            self._layout = ExchangeLayout(type(self).__name__, parts)
        return self._layout

    def _dtype_of_state(self, key: str, usual: torch.dtype, param: Tensor) -> torch.dtype:
        """Momentum has the parameter's size. Second moments are few, so less than float32 would
        save nothing."""
        if not self._has_options:
            return usual
        if key == MOMENTUM:
            return super()._dtype_of_state(key, usual, param)
        is_named = isinstance(self.state_dtype, torch.dtype)
        return torch.float32 if is_named else torch.promote_types(usual, torch.float32)

    def _moves_without_lr(self, group: Group) -> bool:
        eps = group.get("eps")  # the checks come later
        return isinstance(eps, tuple | list) and len(eps) == 2 and eps[0] == 0.0

    def _tell_others(self, error: Exception) -> None:
        layout = self._exchange_layout()
        super()._tell_others(error)
        if layout is not None:
            Exchange(layout).join(error)

    # Each group that was given, by its identity, and what one vector in its place would lose: rows
    # and columns ("matrices"), which elements are one tensor ("several"), or nothing. A copy of the
    # optimizer does not know what its groups were given with, so it refuses none of them.
    _given_groups: dict[int, tuple[Group, str]]
    _given: set[int]  # the identities of all parameters that were ever given

    def _check_param(self, where: Where, group: Group, param: Tensor, grad: Tensor) -> None:
        if self._has_options:
            self._check_precision(where, param)
        if param.is_complex():
            raise RuntimeError(
                f"Adafactor does not support complex parameters: {where}. Optimize "
                "torch.view_as_real(parameter), or use AdamW."
            )
        if grad.is_sparse or param.is_sparse:
            raise RuntimeError(
                f"Adafactor does not support sparse gradients: {where}. Make the gradient dense "
                "(sparse=False in the embedding), or use SparseAdam."
            )
        if "_fsdp_flattened" in param.__dict__ and flat.is_lost(param):
            raise RuntimeError(
                f"Adafactor: {where} is a flat shard of FSDP1, which has lost the rows and columns "
                "of its matrices: steps would be silently wrong. Give FSDP1 use_orig_params=True, "
                "use FSDP2 (fully_shard), or an elementwise optimizer such as AdamW."
            )
        is_known = flat.DECLARED or "_fsdp_flattened" in param.__dict__
        piece = flat.piece_of(param) if is_known else None
        if piece is not None and piece.problem:
            raise RuntimeError(f"Adafactor: {where} is a flat shard: {piece.problem}.")
        if piece is None and self._was_flattened(group):
            raise RuntimeError(
                f"Adafactor: {where}: the group was made with matrices or several tensors, and now "
                "holds one flat vector. An engine that flattens parameters (ZeRO) takes away the "
                "rows and columns that Adafactor needs. For ZeRO put fusedstep.optim.InZero before "
                "it. If it is a run of one parameter, tell which with fusedstep.optim."
                "declare_shard; else use FSDP2 (fully_shard), or an elementwise optimizer such as "
                "AdamW."
            )

    def _is_elsewhere(self, param: Tensor) -> bool:
        return param.numel() == 0 and flat.piece_of(param) is not None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        params = group["params"]
        matrices = any(not is_lazy(param) and param.dim() > 1 for param in params)
        loses = "matrices" if matrices else "several" if len(params) > 1 else ""
        self.__dict__.setdefault("_given_groups", {})[id(group)] = group, loses
        self.__dict__.setdefault("_given", set()).update(map(id, params))

    def state_dict(self) -> dict[str, Any]:
        refuse_torch(self)
        return super().state_dict()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The groups of a checkpoint count as given like those that they replace."""
        before = self.__dict__.get("param_groups", [])
        known = self.__dict__.get("_given_groups", {})
        super().__setstate__(state)
        self._given_groups = {
            id(new): (new, known[id(old)][1])
            for old, new in zip(before, self.param_groups, strict=False)
            if id(old) in known
        }

    def _was_flattened(self, group: Group) -> bool:
        """Whether the group was given with matrices or several tensors, and now holds one vector
        that is new. A script may put a parameter in the place of several vectors; engines make
        tensors that are no parameters."""
        (param, *others) = group["params"]
        if others or param.dim() != 1 or id(param) in self._given:
            return False
        _, loses = self._given_groups.get(id(group), (group, ""))
        return loses == "matrices" or (loses == "several" and type(param) is Tensor)
