"""Which part of a parameter this process holds, and with which processes it shares sums.

A sharded parameter is a DTensor. Every kernel works on its local tensor. An elementwise rule needs
nothing else. A factored rule (Adafactor) needs sums over whole rows, columns and tensors, so each
dimension of the mesh that splits a parameter has a role:

    rows        each process holds some rows of every matrix: sums down the columns are added up
    cols        each holds some columns: sums along the rows are added up
    batch       each holds some of the matrices: only sums over the whole tensor are added up
    elements    each holds some elements of a vector: the same
    flat        each holds a run of elements of a matrix, in row-major order: see `plan/flat.py`
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

PLAIN = {Tensor, torch.nn.Parameter}  # to be asked first, where a call would take long
EMPTY = 16  # a multiple of what kernels load at once


def is_dtensor(tensor: object) -> bool:
    """Whether a tensor is a DTensor. The import of torch.distributed.tensor takes 0.5 s, so it is
    left to those who make one."""
    if type(tensor) in PLAIN:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Any) -> Any:
    """The part of a tensor that is in this process: of a DTensor its local tensor."""
    if not is_dtensor(tensor):
        return tensor
    own = tensor._local_tensor
    return own if type(own) is Tensor else _awaited(own)


def is_spread_as(tensor: Any, param: Any) -> bool:
    """Whether a tensor has the shape of a parameter, and each process the same part of both."""
    if not (is_dtensor(tensor) and is_dtensor(param)):
        return bool(tensor.shape == param.shape) and not (is_dtensor(tensor) or is_dtensor(param))
    return (tensor.shape, tensor.device_mesh, tensor.placements) == (
        param.shape,
        param.device_mesh,
        param.placements,
    ) and local(tensor).shape == local(param).shape


def address_of(tensor: Tensor) -> int:
    """The address of a gradient. An empty one counts as present: it gets an address that nobody
    reads, since 0 means that there is no gradient."""
    return tensor.data_ptr() or (EMPTY if tensor.numel() == 0 else 0)


def _awaited(tensor: Tensor) -> Tensor:
    """The result of a collective that may still be under way."""
    wait = getattr(tensor, "wait", None)
    return tensor if wait is None else wait()


class Processes:
    """Processes that hold the parts of a tensor, by their ranks."""

    def __init__(self, group: Any, device_type: str) -> None:
        self.group = group
        self.device_type = device_type  # of the mesh

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        return tuple(torch.distributed.get_process_group_ranks(self.group))

    @property
    def size(self) -> int:
        return len(self.ranks)

    @property
    def order(self) -> tuple[Any, ...]:
        """Every process goes through its groups in this order, so that no two wait for each other.
        Neighbours, as in tensor parallelism, come before processes that are far apart."""
        return (max(self.ranks) - min(self.ranks), self.ranks)

    def device_for(self, own: torch.device) -> torch.device:
        """Where a message about tensors on `own` is made. With CPU offload the mesh is on GPUs."""
        if own.type == self.device_type or self.device_type == "cpu":
            return own
        return torch.device(
            self.device_type, torch.get_device_module(self.device_type).current_device()
        )

    def add_up(self, numbers: Tensor) -> Callable[[], object]:
        """Starts to add up `numbers` over the processes, in place. Call the result to wait."""
        work = torch.distributed.all_reduce(numbers, group=self.group, async_op=True)
        return lambda: work.wait()

    def gather(self, own: Any) -> list[Any]:
        """What each process gives, in the order of their ranks. The host waits."""
        gathered: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(gathered, own, group=self.group)
        return gathered

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Processes) and self.ranks == other.ranks

    def __hash__(self) -> int:
        return hash(self.ranks)


class Split(NamedTuple):
    """One way in which a parameter is divided among processes."""

    processes: Processes
    role: str  # rows, cols, batch, elements or flat


@dataclass(frozen=True)
class Shard:
    """A part of a parameter of shape `whole`. `splits` is never empty. `is_capped` tells whether a
    cap may change u, so that sum u^2 depends on the exchanged sums."""

    whole: torch.Size
    splits: tuple[Split, ...]
    is_capped: bool = False

    @cached_property
    def roles(self) -> frozenset[str]:
        return frozenset(split.role for split in self.splits)

    @property
    def mode(self) -> str | None:
        """How a factored step goes: `pieces` if every row and column is whole here; `rows` if the
        columns are whole nowhere; `cols` if rows are not, perhaps besides columns."""
        if "cols" in self.roles:
            return "cols"
        return "rows" if "rows" in self.roles else "pieces"

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Rows and columns of a whole matrix, and elements of the whole tensor."""
        rows, cols = self.whole[-2:] if len(self.whole) > 1 else (1, 1)
        return rows, cols, self.whole.numel()

    def over(self, *roles: str) -> list[Processes]:
        """The processes over which what these roles split is added up."""
        return [split.processes for split in self.splits if split.role in roles]


def may_share() -> bool:
    """Whether there are processes that could hold parts of a parameter."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def shard_of(param: Tensor, is_capped: bool) -> Shard | None:
    """The part of a parameter that is here; None if all of it is."""
    if not is_dtensor(param) or param.numel() == 0:
        return None
    splits = []
    for dim, placement in enumerate(param.placements):  # type: ignore[attr-defined]
        if placement.is_partial():
            continue  # the checks refuse it by name
        if not placement.is_replicate() and param.device_mesh.size(dim) > 1:  # type: ignore[attr-defined]
            group = param.device_mesh.get_group(dim)  # type: ignore[attr-defined]
            processes = Processes(group, param.device_mesh.device_type)  # type: ignore[attr-defined]
            splits.append(Split(processes, _role(placement.dim, param.dim())))
    splits.sort(key=lambda split: split.processes.order)
    return Shard(param.shape, tuple(splits), is_capped) if splits else None


def _role(dim: int, dims: int) -> str:
    if dims < 2:
        return "elements"
    return {1: "cols", 2: "rows"}.get(dims - dim % dims, "batch")


def why_not(param: Any, grad: Any) -> str:
    """Why no step could take a DTensor with its gradient; empty if it can."""
    for tensor, what in ((param, "the parameter"), (grad, "its gradient")):
        if not is_dtensor(tensor):
            return (
                f"{what} is a {type(tensor).__name__}, and the other one is a DTensor. Set .grad "
                "to a DTensor with the parameter's mesh and placements"
            )
        if any(placement.is_partial() for placement in tensor.placements):
            return (
                f"{what} has placements {tensor.placements}: a sum that was not taken yet. Call "
                ".redistribute(placements=...) first"
            )
    if param.device_mesh != grad.device_mesh or param.placements != grad.placements:
        return (
            f"its gradient has placements {grad.placements} on {grad.device_mesh}, the parameter "
            f"has {param.placements} on {param.device_mesh}. Redistribute the gradient first"
        )
    return ""


class Spread(NamedTuple):
    """How a DTensor state is spread: its placements, and the shape of its local tensor."""

    placements: tuple[Any, ...]
    shape: torch.Size


def spread_of_state(param: Any, shape: torch.Size, reduced: int | None) -> Spread:
    """How a state of `shape` is spread: as its parameter. If `reduced` is given, it is the
    dimension of the parameter, from the end, that the state lacks or has with size 1. Where the
    parameter is split along that dimension, the state is whole."""
    from torch.distributed.tensor import Replicate

    dims = param.dim()
    gone = None if reduced is None else dims + reduced
    is_dropped = len(shape) < dims
    placements, sizes = [], [*local(param).shape]
    for placement in param.placements:
        if placement.is_replicate() or placement.dim % dims == gone:
            placements.append(Replicate())
        else:
            dim = placement.dim % dims
            placements.append(
                _along(placement, dim - (gone is not None and is_dropped and dim > gone))
            )
    if gone is not None:
        sizes[gone : gone + 1] = [] if is_dropped else [1]
    return Spread(tuple(placements), torch.Size(sizes))


def zeros_of_blocks(param: Any, shape: torch.Size) -> Tensor:
    """Zeros for a float32 state of `shape`, which has one number for each so many of the
    parameter's along its last dimension: spread as the parameter is."""
    made = torch.zeros(
        spread_of_blocks(param, shape).shape, dtype=torch.float32, device=local(param).device
    )
    return made if not is_dtensor(param) else spread_like(param, made, shape)


def spread_of_blocks(param: Any, shape: torch.Size) -> Spread:
    """How such a state is spread."""
    *others, cols = local(param).shape
    blocks = cols * shape[-1] // param.shape[-1]
    return Spread(getattr(param, "placements", ()), torch.Size((*others, blocks)))


def spread_like(param: Any, own: Tensor, shape: torch.Size) -> Tensor:
    """A DTensor of `shape` with the local tensor `own`, spread as the parameter is."""
    from torch.distributed.tensor import DTensor

    strides = torch.empty(shape, device="meta").stride()
    spread = param.device_mesh, param.placements
    return DTensor.from_local(own, *spread, run_check=False, shape=shape, stride=strides)


def _along(placement: Any, dim: int) -> Any:
    """The placement, along another dimension."""
    if hasattr(placement, "split_factor"):  # FSDP2 over tensor parallelism
        return type(placement)(dim, split_factor=placement.split_factor)
    return type(placement)(dim)


def state_model(param: Tensor, grad: Tensor) -> Tensor:
    """What a state of the parameter's shape is made like: the gradient, unless the parameter is a
    DTensor. In torch 2.6 what is computed from a parameter of FSDP2 over tensor parallelism is
    spread in another order, and a state like it would be saved in that order."""
    return param if is_dtensor(param) else grad


def zeros(param: Any, like: Tensor, shape: torch.Size, dtype: torch.dtype, reduced: int) -> Tensor:
    """Zeros for a state of `param` that lacks its dimension `reduced`, or has it with size 1: on
    the device of `like`, spread as the parameter is."""
    if type(param) in PLAIN or not is_dtensor(param):
        return like.new_zeros(shape, dtype=dtype)
    from torch.distributed.tensor import DTensor

    spread = spread_of_state(param, shape, reduced)
    own = torch.zeros(spread.shape, dtype=dtype, device=local(param).device)
    strides = torch.empty(shape, device="meta").stride()
    spread_over = param.device_mesh, spread.placements
    return DTensor.from_local(own, *spread_over, run_check=False, shape=shape, stride=strides)
