"""Loads state dicts. States keep the dtype they were saved in, or get a wider one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .. import check

# (key of a state, its dtype as saved, dtype of its parameter) -> dtype of the loaded state.
LoadedDtype = Callable[[str, torch.dtype, torch.dtype], torch.dtype]


def load_keeping_dtypes(
    optimizer: torch.optim.Optimizer,
    load: Callable[[dict[str, Any]], None],
    state_dict: dict[str, Any],
    dtype_after_loading: LoadedDtype,
) -> None:
    """Calls `load`, which is torch's own. It rounds states to the dtype of their parameters, which
    would change a bfloat16 run. So the states are then copied again from `state_dict`."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"{type(optimizer).__name__}: state_dict should be a dict, as optimizer.state_dict() "
            f"makes it, but is: {type(state_dict).__name__}"
        )
    seen: dict[str, Any] = {}

    def remember(_: Any, loaded: dict[str, Any]) -> None:
        _check_counters(optimizer, loaded)  # after all other hooks, before anything has changed
        seen.update(loaded)

    def restore(_: Any) -> None:
        _restore_dtypes(optimizer, seen, dtype_after_loading)

    before = optimizer.register_load_state_dict_pre_hook(remember)
    after = optimizer.register_load_state_dict_post_hook(restore, prepend=True)
    try:
        load(state_dict)
    finally:
        before.remove()
        after.remove()


def _check_counters(optimizer: torch.optim.Optimizer, loaded: dict[str, Any]) -> None:
    """Refuses a state without a step counter: another optimizer saved it."""
    groups, saved_groups = optimizer.param_groups, loaded.get("param_groups", ())
    if [len(g["params"]) for g in groups] != [len(g["params"]) for g in saved_groups]:
        return  # torch refuses it
    for index, group in enumerate(saved_groups):
        for place, saved_id in enumerate(group["params"]):
            state = loaded.get("state", {}).get(saved_id)
            if state and "step" not in state:
                raise KeyError(
                    f"step: {type(optimizer).__name__}: {check.Where(groups, index, place)}: its "
                    f"loaded state has no step counter, but {', '.join(map(repr, state))}. Load a "
                    "checkpoint of the same optimizer."
                )


def _restore_dtypes(
    optimizer: torch.optim.Optimizer, loaded: dict[str, Any], dtype_after_loading: LoadedDtype
) -> None:
    saved_ids = [i for group in loaded["param_groups"] for i in group["params"]]
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for saved_id, param in zip(saved_ids, params, strict=True):
        for key, value in loaded["state"].get(saved_id, {}).items():
            if key != "step" and isinstance(value, Tensor) and value.is_floating_point():
                dtype = dtype_after_loading(key, value.dtype, param.dtype)
                if optimizer.state[param][key].dtype != dtype:
                    widened = value.detach().to(param.device, dtype, copy=True)
                    optimizer.state[param][key] = widened
