"""Flat shards: each process holds one run of a parameter's elements, in row-major order.

FSDP1, ZeRO and Megatron flatten parameters before they divide them. Adafactor needs rows and
columns, so it must know which run of which shape a flat tensor is:

    FSDP1 with use_orig_params=True knows it, and is asked here
    everybody else calls `declare_shard`

A run begins and ends anywhere, so rows and columns are both partial. Sums along the rows and down
the columns are added up over the processes; the moments are whole on each of them. A process whose
run is empty has no state, but takes part in the sums. If one process holds a whole parameter,
nothing is added up.
"""

from __future__ import annotations

import gc
import math
import sys
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .shards import Processes, Shard, Split, is_dtensor


class FlatPiece(NamedTuple):
    """The elements start..start + length of a parameter of `shape`. `problem` tells why no step can
    take it, if so; `is_everywhere` whether all its processes have this problem."""

    shape: torch.Size
    start: int
    length: int
    processes: Processes
    problem: str = ""
    is_everywhere: bool = False


@dataclass(frozen=True)
class FlatShard(Shard):
    """The elements start..start + length of `whole`."""

    start: int = 0
    length: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether all elements are here, so that no sum is exchanged."""
        return self.length == self.whole.numel()

    @property
    def mode(self) -> str | None:
        if self.is_whole:
            return None
        return "flat" if len(self.whole) > 1 else "pieces"

    @property
    def run(self) -> tuple[int, int]:
        return self.start, self.length


class _Unit(NamedTuple):
    """Where FSDP1 keeps what it knows about a parameter."""

    handle: weakref.ref[Any]
    place: int  # among the parameters that it flattened together


_declared: Any = WeakTensorKeyDictionary()  # parameter -> FlatPiece
DECLARED: dict[Any, FlatPiece] = _declared.data  # empty in most processes
_fsdp: Any = WeakTensorKeyDictionary()  # parameter -> _Unit, or None if nobody knows it


def declare_shard(param: Tensor, shape: Sequence[int], start: int, group: Any = None) -> None:
    """Says which part of a parameter a flat tensor is, so that Adafactor can be used on it.

    `param` has the elements ``start`` to ``start + param.numel()`` of a parameter of ``shape``, in
    row-major order. Processes that divide parameters this way (ZeRO, Megatron) each hold such a
    run. All of them give all parameters to their optimizers, in the same order, and declare them;
    where nothing of a parameter is, as an empty tensor. FSDP1 with ``use_orig_params=True`` is
    known without this.

    Arguments:
        param: a 1-D parameter, before the first step with it. Declare it again after its size or
            place has changed.
        shape: of the whole parameter: the same on every process.
        start: the place of the first element. It does not matter for an empty tensor.
        group: the processes that hold the other runs. By default all processes.

    Example:
        >>> from fusedstep.optim import Adafactor, declare_shard
        >>> store = torch.distributed.HashStore()
        >>> torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> matrix, begin, end = torch.ones(4, 8), 0, 32  # of one process: all elements
        >>> piece = torch.nn.Parameter(matrix.flatten()[begin:end].clone())
        >>> declare_shard(piece, matrix.shape, begin)
        >>> opt = Adafactor([piece])
        >>> torch.distributed.destroy_process_group()
    """
    if not isinstance(param, Tensor) or is_dtensor(param):
        raise TypeError(
            f"declare_shard: param should be a plain tensor but is a {type(param).__name__}. A "
            "DTensor knows its own shards."
        )
    if param.dim() != 1:
        raise ValueError(
            f"declare_shard: param should be flat (1-D) but has shape {tuple(param.shape)}. Only "
            "flat tensors need to be declared."
        )
    if isinstance(shape, int) or not all(_is_size(size) for size in shape):
        raise ValueError(f"declare_shard: shape should be sizes of 0 or more but is: {shape!r}")
    if not _is_size(start):
        raise ValueError(f"declare_shard: start should be an int of 0 or more but is: {start!r}")
    count, elements = param.numel(), math.prod(shape)
    if count and start + count > elements:
        raise ValueError(
            f"declare_shard: param has elements {start} to {start + count}, but a parameter of "
            f"shape {tuple(shape)} has only {elements}. Correct start or shape."
        )
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise RuntimeError(
            "declare_shard: torch.distributed is not initialized, so there are no processes that "
            "could hold the other parts. Call init_process_group first."
        )
    group = torch.distributed.group.WORLD if group is None else group
    if torch.distributed.get_rank(group) < 0:
        raise ValueError("declare_shard: group should contain this process but does not")
    types = [device.type for device in getattr(group, "_device_types", ())]
    own = param.device.type  # a CPU parameter may belong to a group of GPUs
    processes = Processes(group, own if own in types or not types else types[0])
    declare(param, FlatPiece(torch.Size(shape), start, count, processes))


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def declare(param: Tensor, piece: FlatPiece) -> None:
    """`declare_shard` without its checks."""
    _declared[param] = piece


def piece_of(param: Tensor) -> FlatPiece | None:
    """What is known about a flat shard. None if the parameter is not flat, or nothing is."""
    if not (DECLARED or "_fsdp_flattened" in param.__dict__):
        return None
    piece: FlatPiece | None = _declared.get(param)
    if piece is None:
        return _fsdp_piece(param) if getattr(param, "_fsdp_flattened", False) else None
    if param.numel() != piece.length:
        return piece._replace(
            problem=f"it was declared with {piece.length} elements and has {param.numel()} now. "
            "Call declare_shard again"
        )
    return piece


def whole_shape(param: Tensor) -> torch.Size:
    """The shape whose rows and columns a parameter has. A flat piece is a part of it."""
    piece = piece_of(param)
    return param.shape if piece is None else piece.shape


def is_lost(param: Tensor) -> bool:
    """Whether a parameter is flat and nobody knows its rows and columns."""
    return getattr(param, "_fsdp_flattened", False) and (
        piece_of(param) is None and _unit_of(param) is None
    )


def shard_of(piece: FlatPiece, is_capped: bool) -> FlatShard | None:
    """The part of a parameter that is here; None if no step can take it."""
    if piece.is_everywhere:
        return None
    role = "flat" if len(piece.shape) > 1 else "elements"
    splits = (Split(piece.processes, role),)
    return FlatShard(piece.shape, splits, is_capped, piece.start, piece.length)


def _unit_of(param: Tensor) -> _Unit | None:
    """Where FSDP1 knows a parameter. A parameter does not know it, so the first call for a model
    looks through all objects of the process for FSDP1's handles."""
    if param not in _fsdp:
        module: Any = sys.modules.get("torch.distributed.fsdp._flat_param")
        for handle in () if module is None else gc.get_objects():
            if type(handle) is module.FlatParamHandle:
                params = getattr(getattr(handle, "flat_param", None), "_params", None) or ()
                for place, own in enumerate(params):
                    _fsdp[own] = _Unit(weakref.ref(handle), place)
        _fsdp.setdefault(param, None)
    unit: _Unit | None = _fsdp[param]
    return unit


def _fsdp_piece(param: Tensor) -> FlatPiece | None:
    unit = _unit_of(param)
    handle = None if unit is None else unit.handle()
    if unit is None or handle is None or not handle.uses_sharded_strategy:
        return None  # NO_SHARD leaves parameters whole
    flat, k = handle.flat_param, unit.place
    info = flat._shard_param_infos[k]
    count = info.numel_in_shard if info.in_shard else 0
    problem = ""
    if flat._param_extensions[k] is not None:
        problem = (
            "FSDP1 flattened a part of it, which tensor parallelism had made. Use FSDP2 "
            "(fully_shard) with tensor parallelism"
        )
    elif not flat._contiguities[k]:
        problem = (
            "FSDP1 flattened it in another order than row-major. Make it contiguous before FSDP1 "
            "wraps it"
        )
    is_everywhere = bool(problem)
    if not problem and param.numel() != count:
        problem = (
            "FSDP1 has not sharded it again after its last use. Step after backward, outside "
            "summon_full_params"
        )
    processes = Processes(handle.process_group, handle.device.type)
    start = info.intra_param_start_idx if info.in_shard else 0
    return FlatPiece(flat._shapes[k], start, count, processes, problem, is_everywhere)


def why_no_partition(runs: Iterable[tuple[int, int]], ranks: Sequence[int], count: int) -> str:
    """What is wrong with the runs of one parameter on all ranks; empty if each of its `count`
    elements is in one of them."""
    found = sorted((*run, rank) for run, rank in zip(runs, ranks, strict=True) if run[1])
    end, before = 0, None
    for start, length, rank in found:
        if start < end:
            return f"ranks {before} and {rank} both hold element {start}"
        if start > end:
            return f"no rank holds elements {end} to {start}"
        end, before = start + length, rank
    return "" if end == count else f"no rank holds elements {end} to {count}"
