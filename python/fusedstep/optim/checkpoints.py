"""Loading state dicts: states keep the dtype they were saved in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def load_keeping_dtypes(
    optimizer: torch.optim.Optimizer,
    load: Callable[[dict[str, Any]], None],
    state_dict: dict[str, Any],
) -> None:
    """Calls `load`, which is torch's own. It rounds states to the dtype of their parameters, and a
    bfloat16 run would not go on as it was: so they are put back as they were saved."""
    seen: dict[str, Any] = {}

    def remember(_: Any, loaded: dict[str, Any]) -> None:
        seen.update(loaded)

    def restore(_: Any) -> None:
        _restore_dtypes(optimizer, seen)

    before = optimizer.register_load_state_dict_pre_hook(remember)
    after = optimizer.register_load_state_dict_post_hook(restore, prepend=True)
    try:
        load(state_dict)
    finally:
        before.remove()
        after.remove()


def _restore_dtypes(optimizer: torch.optim.Optimizer, loaded: dict[str, Any]) -> None:
    saved_ids = [i for group in loaded["param_groups"] for i in group["params"]]
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for saved_id, param in zip(saved_ids, params, strict=True):
        for key, value in loaded["state"].get(saved_id, {}).items():
            if key != "step" and isinstance(value, Tensor) and value.is_floating_point():
                now = optimizer.state[param][key]
                if now.dtype != value.dtype:
                    optimizer.state[param][key] = value.detach().clone().to(param.device)
