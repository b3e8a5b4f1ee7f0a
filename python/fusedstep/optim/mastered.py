"""Master weights by name: `master_state_dict` and `load_master_state_dict` of every optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..plan.plan import Plan
from . import masters
from .clipped import ClippedOptimizer


class MasteredOptimizer(ClippedOptimizer):
    """Gives its master weights out, and takes others."""

    _masters: masters.MasterWeights
    _plan: Plan | None = None

    @torch.no_grad()
    def master_state_dict(self, model: torch.nn.Module) -> dict[str, Any]:
        """The model's state dict with float32 master weights in the place of its 16-bit parameters.
        A float32 model of the same class loads it. Sharded parameters give sharded masters.

        Arguments:
            model: the model whose parameters this optimizer has.

        Example:
            >>> from fusedstep.optim import AdamW
            >>> model = torch.nn.Linear(8, 8, dtype=torch.bfloat16)
            >>> opt = AdamW(model.parameters(), master_weights=True)
            >>> opt.master_state_dict(model)["weight"].dtype
            torch.float32
        """
        saved: dict[str, Any] = model.state_dict()
        for name, param in self._named_in(model):
            if name in saved:
                saved[name] = masters.master_of(param, self.state.get(param, {}))
        return saved

    @torch.no_grad()
    def load_master_state_dict(self, model: torch.nn.Module, state_dict: dict[str, Any]) -> None:
        """Sets master weights, and the parameters that belong to them, from float32 weights by
        name: of `master_state_dict`, or of a float32 model. What the model has no parameter for is
        left out.

        Arguments:
            model: the model whose parameters this optimizer has.
            state_dict: the weights, one for each parameter of the optimizer. Where parameters are
                sharded, whole or sharded weights.
        """
        if not self.master_weights:
            raise RuntimeError(
                f"{type(self).__name__}: load_master_state_dict needs master_weights=True: this "
                "optimizer keeps none. Load the weights into the model."
            )
        named = dict(self._named_in(model))
        missing = [name for name in named if name not in state_dict]
        if missing:
            raise KeyError(
                f"{missing[0]}: {type(self).__name__}: state_dict has no master weight for "
                f"{', '.join(map(repr, missing))}"
            )
        given = {
            name: masters.like_parameter(name, param, state_dict[name])
            for name, param in named.items()
        }
        self._make_missing_states()
        for name, param in named.items():
            masters.set_master(param, self.state[param], given[name])
        self._masters.forget()
        self._plan = None

    def _named_in(self, model: torch.nn.Module) -> list[tuple[str, Tensor]]:
        """The parameters of this optimizer by their names in a model."""
        own = {id(param): str(where) for where, _, param in self._parameters()}
        named = [(n, p) for n, p in masters.named_parameters(model) if id(p) in own]
        unknown = own.keys() - {id(param) for _, param in named}
        if unknown:
            raise ValueError(
                f"{type(self).__name__}: {own[min(unknown)]} is no parameter of the given "
                f"{type(model).__name__}. Give the model whose parameters the optimizer has."
            )
        return named
