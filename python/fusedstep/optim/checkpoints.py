"""Loads state dicts. States keep what they were saved in, or are converted: nothing is lost unless
somebody asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import check
from ..plan import shards
from ..plan.storage import COPY, REST, SCALE
from ..stored_numbers import LEVELS, from_blocks, in_blocks, to_blocks

if TYPE_CHECKING:
    from .stored import StoredOptimizer

State = dict[str, Any]


def load_keeping_dtypes(
    optimizer: StoredOptimizer, load: Callable[[dict[str, Any]], None], state_dict: dict[str, Any]
) -> None:
    """Calls `load`, which is torch's own. It rounds states to the dtype of their parameters, which
    would change a bfloat16 run. So the states are then made again from `state_dict`."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"{type(optimizer).__name__}: state_dict should be a dict, as optimizer.state_dict() "
            f"makes it, but is: {type(state_dict).__name__}"
        )
    seen: dict[str, Any] = {}

    def remember(_: Any, loaded: dict[str, Any]) -> None:  # after all other hooks
        for where, param, state in _saved_states(optimizer, loaded):
            if optimizer.peer_counts:
                _check_counter(optimizer, where, state)
            _check_stored(optimizer, where, param, state)
        seen.update(loaded)

    def restore(_: Any) -> None:
        for _where, param, state in _saved_states(optimizer, seen):
            _restore(optimizer, param, state)

    before = optimizer.register_load_state_dict_pre_hook(remember)
    after = optimizer.register_load_state_dict_post_hook(restore, prepend=True)
    try:
        load(state_dict)
    finally:
        before.remove()
        after.remove()


def _saved_states(
    optimizer: StoredOptimizer, loaded: dict[str, Any]
) -> Iterator[tuple[check.Where, Tensor, State]]:
    """The states of a checkpoint, with the parameters that they belong to. Nothing if the groups do
    not fit: torch refuses these."""
    groups, saved_groups = optimizer.param_groups, loaded.get("param_groups", ())
    if [len(g["params"]) for g in groups] != [len(g["params"]) for g in saved_groups]:
        return
    saved_ids = (saved_id for group in saved_groups for saved_id in group["params"])
    for (where, param), saved_id in zip(check.all_places(groups), saved_ids, strict=True):
        state = loaded.get("state", {}).get(saved_id)
        if state:
            yield where, param, state


def _check_counter(optimizer: StoredOptimizer, where: check.Where, state: State) -> None:
    """Refuses a state without a step counter: another optimizer saved it."""
    if "step" not in state:
        raise KeyError(
            f"step: {type(optimizer).__name__}: {where}: its loaded state has no step counter, but "
            f"{', '.join(map(repr, state))}. Load a checkpoint of the same optimizer."
        )


def _check_stored(
    optimizer: StoredOptimizer, where: check.Where, param: Tensor, state: State
) -> None:
    """Refuses states whose options this optimizer does not have, if it would lose something."""
    name = type(optimizer).__name__
    wanted = optimizer.precision.rest_dtype(param)
    for key in (REST, COPY):
        if key not in state:
            continue
        saved = state[key].dtype
        option = 8 if saved == torch.int8 else True
        if wanted == saved or (saved, wanted) == (torch.int8, torch.int16):
            continue
        raise ValueError(
            f"{name}: {where}: the checkpoint has master weights ('{key}', {saved}) of an "
            f"optimizer with master_weights={option}, and this one has "
            f"master_weights={optimizer.master_weights!r} and would lose them. Give it "
            f"master_weights={option} and a parameter of the same dtype, or take the weights from "
            "the old one's master_state_dict()."
        )
    for key, value in state.items():
        if not isinstance(value, Tensor) or value.dtype not in LEVELS or key in (REST, "step"):
            continue
        if key + SCALE not in state:
            raise KeyError(
                f"{key}{SCALE}: {name}: {where}: its loaded state '{key}' has codes of 8 bits "
                "without their scales. Load a checkpoint of the same optimizer."
            )
        if optimizer.state_dtype is None:
            raise ValueError(
                f"{name}: {where}: the checkpoint's state '{key}' is of an optimizer with "
                "state_dtype='int8', and this one has state_dtype=None, which keeps the dtype of a "
                "checkpoint. Give it state_dtype='int8', or torch.float32 or torch.bfloat16 to "
                "convert the states."
            )


def _restore(optimizer: StoredOptimizer, param: Tensor, saved: State) -> None:
    state = optimizer.state[param]
    for key, value in saved.items():
        if key == "step" or not isinstance(value, Tensor):
            continue
        value = value.detach()
        if key in optimizer.history:  # torch gives it the parameter's dtype and device
            state[key] = value.to(state["step"].device, copy=True)
            continue
        if key == REST:
            state[key] = _widened_rest(value, optimizer.precision.rest_dtype(param)).to(
                param.device, copy=True
            )
        elif (owner := key.removesuffix(SCALE)) != key and owner in saved:
            if state[owner].dtype not in LEVELS:
                del state[key]  # codes bring their scales along
        elif value.dtype in LEVELS:
            _restore_numbers(optimizer, param, key, value, saved[key + SCALE])
        elif value.is_floating_point():
            _restore_numbers(optimizer, param, key, value, None)


def _widened_rest(rest: Tensor, dtype: torch.dtype | None) -> Tensor:
    return rest.to(torch.int16) * 256 if (rest.dtype, dtype) == (torch.int8, torch.int16) else rest


def _restore_numbers(
    optimizer: StoredOptimizer, param: Tensor, key: str, value: Tensor, scales: Tensor | None
) -> None:
    """Puts a state back in the dtype in which this optimizer takes it."""
    state = optimizer.state[param]
    usual = torch.float32 if scales is not None else value.dtype
    dtype = usual if key == COPY else optimizer._dtype_after_loading(key, usual, param)
    if scales is not None and dtype == value.dtype:
        state[key] = value.to(param.device, copy=True)
        state[key + SCALE] = scales.detach().to(param.device, copy=True)
        return
    if scales is None and dtype not in LEVELS:
        if state[key].dtype != dtype:
            state[key] = value.to(param.device, dtype, copy=True)
        return
    numbers = shards.local(value).contiguous()
    if scales is not None:
        codes = in_blocks(numbers)
        column = shards.local(scales.detach()).reshape(-1, 1)
        numbers = from_blocks(codes, column).view(numbers.shape)
    if dtype not in LEVELS:
        converted = numbers.to(param.device, dtype)
        state[key] = _like(value, converted, value.shape)
        return
    numbers = numbers.to(param.device, torch.float32)
    codes, column = to_blocks(in_blocks(numbers), dtype)
    *others, cols = value.shape
    blocks = torch.Size((*others, cols * column.numel() // max(1, numbers.numel())))
    state[key] = _like(value, codes.view(numbers.shape), value.shape)
    local_shape = (*numbers.shape[:-1], -1)
    state[key + SCALE] = _like(value, column.view(local_shape), blocks)


def _like(value: Tensor, own: Tensor, shape: torch.Size) -> Tensor:
    """A tensor with the local tensor `own`, spread as `value` is."""
    return shards.spread_like(value, own, shape) if shards.is_dtensor(value) else own
