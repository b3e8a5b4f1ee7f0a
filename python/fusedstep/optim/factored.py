"""What the two dialects of Adafactor share: which parameters can be factored, which cannot."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor
from torch.nn.parameter import is_lazy

from ..check import Where
from .base import FusedOptimizer, Group


class FactoredOptimizer(FusedOptimizer):
    """Base of the Adafactors: refuses what has lost its rows and columns."""

    def __init__(self, params: Any, defaults: dict[str, Any], backend: str | None) -> None:
        self._forget_what_was_given()
        super().__init__(params, defaults, backend)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_given" not in self.__dict__:  # a copy was given nothing
            self._forget_what_was_given()
        super().__setstate__(state)

    def _check_param(self, where: Where, group: Group, param: Tensor, grad: Tensor) -> None:
        if param.is_complex():
            raise RuntimeError(
                f"Adafactor does not support complex parameters: {where}. Optimize "
                "torch.view_as_real(parameter), or use AdamW."
            )
        if grad.is_sparse or param.is_sparse:
            raise RuntimeError(
                f"Adafactor does not support sparse gradients: {where}. Make the gradient dense "
                "(sparse=False in the embedding), or use torch.optim.SparseAdam."
            )
        if getattr(param, "_fsdp_flattened", False):
            raise RuntimeError(
                f"Adafactor: {where} is a flat shard of FSDP1, which has lost the rows and columns "
                "of its matrices: steps would be silently wrong. Use an elementwise optimizer "
                "such as AdamW with FSDP1."
            )
        if self._was_flattened(param):
            raise RuntimeError(
                f"Adafactor: {where}: the optimizer was made with matrices and now holds flat "
                "vectors. An engine that flattens parameters (ZeRO) takes away the rows and "
                "columns that Adafactor needs: use an elementwise optimizer such as AdamW with it."
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        params = self.param_groups[-1]["params"]
        self._given.update((id(param), param) for param in params)
        self._had_matrices |= any(not is_lazy(param) and param.dim() > 1 for param in params)

    def _forget_what_was_given(self) -> None:
        self._given: WeakValueDictionary[int, Tensor] = WeakValueDictionary()
        self._had_matrices = False

    def _was_given(self, param: Tensor) -> bool:
        return self._given.get(id(param)) is param

    def _was_flattened(self, param: Tensor) -> bool:
        """Whether vectors that were never given stand where all parameters were, matrices too."""
        if not self._had_matrices or param.dim() != 1 or self._was_given(param):
            return False
        now = [other for group in self.param_groups for other in group["params"]]
        return all(other.dim() == 1 and not self._was_given(other) for other in now)
