"""What the two dialects of Adafactor share: which parameters can be factored, which cannot."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..check import Where
from .base import FusedOptimizer, Group


class FactoredOptimizer(FusedOptimizer):
    """Base of the Adafactors: refuses what has lost its rows and columns."""

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
        if self._was_flattened(group):
            raise RuntimeError(
                f"Adafactor: {where}: the group was made with matrices and now holds one flat "
                "vector. An engine that flattens parameters (ZeRO) takes away the rows and columns "
                "that Adafactor needs: use an elementwise optimizer such as AdamW with it."
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        params = self.param_groups[-1]["params"]
        matrices = any(param.dim() > 1 for param in params)
        self.__dict__.setdefault("_group_sizes", []).append(len(params) if matrices else 0)

    def _was_flattened(self, group: Group) -> bool:
        sizes = self.__dict__.get("_group_sizes", [])
        index = next((i for i, other in enumerate(self.param_groups) if other is group), len(sizes))
        had = sizes[index] if index < len(sizes) else 0
        params = group["params"]
        return had > 0 and len(params) <= had and all(param.dim() == 1 for param in params)
