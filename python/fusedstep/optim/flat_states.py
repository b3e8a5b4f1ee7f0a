"""Checkpoints of flat shards: whole states from the pieces of all processes, and back."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..plan import flat

# They take every state for as long as its parameter's flat piece.
ASKERS = (
    "torch.distributed.fsdp.fully_sharded_data_parallel",
    "torch.distributed.checkpoint.state_dict",
)


def full_state_dict(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state dict that one process would have, of an optimizer on flat shards (FSDP1, ZeRO,
    Megatron): every state has the shape that belongs to the whole parameter, on the CPU.

    All processes call it together, and each gets all of it. `optimizer.load_state_dict` takes it in
    any number of processes, flat or not: each keeps its own pieces. torch's and transformers'
    classes take it too.

    Arguments:
        optimizer: one of ours.

    Example:
        >>> from fusedstep.optim import Adafactor, full_state_dict
        >>> model = torch.nn.Linear(8, 8)
        >>> opt = Adafactor(model.parameters())  # nothing is flat here
        >>> full_state_dict(opt).keys() == opt.state_dict().keys()
        True
    """
    saved: dict[str, Any] = optimizer.state_dict()
    states, reduced = saved["state"], getattr(optimizer, "reduced", {})
    saved_ids = [i for group in saved["param_groups"] for i in group["params"]]
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for saved_id, param in zip(saved_ids, params, strict=True):
        piece = flat.piece_of(param)
        if piece is None:
            continue
        own = states.get(saved_id) if piece.length else None
        answers = piece.processes.gather(own and (piece.start, _on_host(own)))
        parts = [answer for answer in answers if answer]
        if parts:
            states[saved_id] = {
                key: _joined(key, parts, piece.shape, reduced) for key in parts[0][1]
            }
    return saved


def _on_host(state: dict[str, Any]) -> dict[str, Any]:
    return {k: v.detach().cpu() if isinstance(v, Tensor) else v for k, v in state.items()}


def _joined(
    key: str,
    parts: list[tuple[int, dict[str, Any]]],
    shape: torch.Size,
    reduced: Iterable[str],
) -> Any:
    """One state of a parameter, from those that have pieces of it. Moments of rows and columns, and
    numbers, are whole everywhere."""
    first = parts[0][1][key]
    if not isinstance(first, Tensor) or first.dim() == 0 or key in reduced:
        return first
    whole = first.new_zeros(shape.numel())
    for start, state in parts:
        whole[start : start + state[key].numel()] = state[key].flatten()
    return whole.view(shape)


def keep_own_pieces(optimizer: torch.optim.Optimizer, reduced: Iterable[str]) -> None:
    """After whole states were loaded: keeps what belongs to the flat pieces here."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            piece = flat.piece_of(param)
            if piece is None or param not in optimizer.state:
                continue
            if piece.length == 0:
                del optimizer.state[param]
                continue
            state, end = optimizer.state[param], piece.start + piece.length
            for key, value in state.items():
                is_whole = isinstance(value, Tensor) and value.shape == piece.shape
                if is_whole and key not in reduced and piece.shape != param.shape:
                    state[key] = value.flatten()[piece.start : end].clone()


def refuse_torch(optimizer: torch.optim.Optimizer) -> None:
    """Refuses a state dict with the moments of flat matrices to torch's functions for sharded
    checkpoints, which would fail with an assertion about sizes."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") not in ASKERS:
        frame = frame.f_back
    if frame is None:
        return
    params = (param for group in optimizer.param_groups for param in group["params"])
    pieces = (flat.piece_of(param) for param in params)
    if any(piece is not None and len(piece.shape) > 1 for piece in pieces):
        raise RuntimeError(
            f"{type(optimizer).__name__}: this function of torch takes every state of a flat shard "
            "for as long as the shard, and moments of rows and columns are not. Use "
            "fusedstep.optim.full_state_dict(optimizer), called by all processes, and "
            "optimizer.load_state_dict; or save optimizer.state_dict() of each process, for the "
            "same number of processes; or shard with FSDP2 (fully_shard)."
        )
