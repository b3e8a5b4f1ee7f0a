"""Parameters that real processes share, beside the same parameters in one process."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from tests.support.cases import CASES, Case, Params, same_bits
from tests.support.processes import DEVICE

# With 2 and 4 processes: even and uneven rows, fewer rows than processes, a batch of matrices, a
# batch of a batch, vectors, a scalar, nothing at all.
SHAPES = [
    (64, 48),
    (37, 21),
    (1, 40),
    (3, 300),
    (1030, 9),
    (5, 4, 6),
    (2, 3, 5, 7),
    (70,),
    (3,),
    (),
    (0,),
]

# The mesh, from the number of processes, and the placements.
LAYOUTS: dict[str, tuple[Callable[[int], tuple[int, ...]], tuple[Placement, ...]]] = {
    "rows": (lambda size: (size,), (Shard(0),)),
    "cols": (lambda size: (size,), (Shard(1),)),
    "replicated": (lambda size: (size,), (Replicate(),)),
    "hsdp": (lambda size: (2, size // 2), (Replicate(), Shard(0))),
    "rows-cols": (lambda size: (2, size // 2), (Shard(0), Shard(1))),
    "rows-rows": (lambda size: (2, size // 2), (Shard(0), Shard(0))),
    "last": (lambda size: (size,), (Shard(2),)),
}


def case_of(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


@functools.cache
def mesh_of(*shape: int) -> DeviceMesh:
    return init_device_mesh(DEVICE, shape)


def layout(name: str) -> tuple[DeviceMesh, tuple[Placement, ...]]:
    shape, placements = LAYOUTS[name]
    return mesh_of(*shape(dist.get_world_size())), placements


def whole(tensor: Any) -> Tensor:
    """All of a tensor, in every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def place(tensor: Tensor, mesh: DeviceMesh, placements: tuple[Placement, ...]) -> DTensor:
    """The part of a tensor that all processes have, without a collective. What has no such
    dimension is replicated."""
    own, used = tensor, []
    for dim, placement in enumerate(placements):
        if isinstance(placement, Shard) and placement.dim < tensor.dim():
            size, rank = mesh.size(dim), mesh.get_local_rank(dim)
            parts = own.chunk(size, placement.dim)
            is_empty = rank >= len(parts)
            own = own.narrow(placement.dim, 0, 0) if is_empty else parts[rank]
            used.append(placement)
        else:
            used.append(Replicate())
    return DTensor.from_local(
        own.contiguous().clone().to(mesh.device_type),
        mesh,
        used,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def as_placed(tensor: Tensor, param: Tensor) -> Tensor:
    """A whole tensor, placed as a parameter is."""
    if isinstance(param, DTensor):
        return place(tensor, param.device_mesh, param.placements)
    return tensor.clone().to(param.device)


def numbers(shapes: Any, seed: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64) * scale for s in shapes]


def gradient(number: Tensor, step: int) -> Tensor:
    """A gradient with zero rows and columns, so small in some steps that caps bind."""
    own = number * 0.02 * 10.0 ** -(step % 3)
    if own.dim() > 1 and min(own.shape[-2:]) > 2:
        own[..., 1, :] = 0
        own[..., 2] = 0
    return own


@dataclass
class Run:
    """An optimizer on sharded parameters. In rank 0 the same in one process: with these dtypes, and
    with float64."""

    case: Case
    sharded: Params
    backend: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.optimizer = self.make(self.sharded)
        self.first = [whole(param).detach().clone() for param in self.sharded]
        self.one = [torch.nn.Parameter(own.clone()) for own in self.first]
        self.exact = [torch.nn.Parameter(own.double()) for own in self.first]
        self.is_first = dist.get_rank() == 0
        self.one_optimizer, self.exact_optimizer = self.make(self.one), self.make(self.exact)
        self.steps = 0

    def make(self, params: Params) -> Any:
        return self.case.make(params, backend=self.backend, **self.options)

    def step(self, count: int = 1, calls: Calls | None = None) -> None:
        for _ in range(count):
            made = numbers([own.shape for own in self.first], 1000 + self.steps)
            for index, number in enumerate(made):
                param, one, exact = self.sharded[index], self.one[index], self.exact[index]
                one.grad = gradient(number, self.steps).to(one.dtype)
                exact.grad = one.grad.double()
                param.grad = as_placed(one.grad, param)
            with counted(calls) if calls is not None else no_count():
                self.optimizer.step()
            if self.is_first:
                self.one_optimizer.step()
                self.exact_optimizer.step()
            self.steps += 1

    def assert_same_bits(self) -> None:
        """Asserts that parameters and states have the bits of one process."""
        for index, (param, one) in enumerate(zip(self.sharded, self.one, strict=True)):
            found = whole(param)
            own = {key: whole(value) for key, value in self.optimizer.state[param].items()}
            if not self.is_first:
                continue
            where = f"{self.case} parameter {index} {tuple(one.shape)}"
            assert same_bits(found, one), f"{where}: differs by {(found - one).abs().max()}"
            other = self.one_optimizer.state[one]
            assert own.keys() == other.keys(), where
            for key, value in own.items():
                a, b = torch.as_tensor(value), torch.as_tensor(other[key])
                assert same_bits(a, b), f"{where}: state {key}: {a} is not {b}"

    def errors(self) -> tuple[float, float, float]:
        """In rank 0: the distance to one process, and the distances of both to float64, each
        relative to the update. The first is the largest of all parameters and states; the others
        take all parameters as one vector."""
        found = [whole(param).detach().double() for param in self.sharded]
        states = [
            {key: whole(v) for key, v in self.optimizer.state[param].items()}
            for param in self.sharded
        ]
        if not self.is_first:
            return 0.0, 0.0, 0.0
        one = [param.detach().double() for param in self.one]
        exact = [param.detach() for param in self.exact]
        first = [own.double() for own in self.first]
        apart = [_ratio(a - b, b - c) for a, b, c in zip(found, one, first, strict=True)]
        for own, param in zip(states, self.one, strict=True):
            for key, value in self.one_optimizer.state[param].items():
                a, b = (torch.as_tensor(v).double() for v in (own[key], value))
                apart.append(_ratio(a - b, b))
        update = _joined(exact) - _joined(first)
        return (
            max(apart),
            _ratio(_joined(found) - _joined(exact), update),
            _ratio(_joined(one) - _joined(exact), update),
        )

    def assert_replicas_agree(self) -> None:
        """Asserts that what several processes hold has the same bits in all of them."""
        for index, param in enumerate(self.sharded):
            where = f"{self.case} parameter {index} {tuple(param.shape)}"
            for key, value in {"parameter": param, **self.optimizer.state[param]}.items():
                assert_replicated(value, f"{where}: {key}")


def assert_replicated(value: Any, where: str) -> None:
    own = value.to_local() if isinstance(value, DTensor) else torch.as_tensor(value)
    coordinate = None
    if isinstance(value, DTensor):
        placed = zip(value.device_mesh.get_coordinate(), value.placements, strict=True)
        coordinate = tuple(at for at, placement in placed if not placement.is_replicate())
    given: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(given, (coordinate, own.detach()))
    seen: dict[Any, Tensor] = {}
    for rank, (place_there, there) in enumerate(given):
        before = seen.setdefault(place_there, there)
        assert same_bits(before, there), f"{where}: rank {rank} has other bits"


def _joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _ratio(difference: Tensor, size: Tensor) -> float:
    """The ratio of two norms; 0 if there is no difference, nan if there is a nan."""
    over = difference.norm().item()
    return 0.0 if over == 0.0 else over / max(size.norm().item(), 1e-300)


COLLECTIVES = [
    "all_reduce",
    "all_gather",
    "all_gather_object",
    "all_gather_into_tensor",
    "all_to_all",
    "all_to_all_single",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "gather",
    "gather_object",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "scatter",
    "scatter_object_list",
    "send",
    "recv",
    "isend",
    "irecv",
]


@dataclass
class Calls:
    """The collectives of a step, and how many bytes each sends."""

    names: list[str] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)


@contextmanager
def counted(calls: Calls) -> Iterator[None]:
    """Notes every collective. Those of DTensors' operators are noted by torch's own counter."""
    from torch.distributed.tensor.debug import CommDebugMode

    olds = {name: getattr(dist, name) for name in COLLECTIVES}

    def noting(name: str) -> Any:
        @functools.wraps(olds[name])
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.names.append(name)
            tensors = [value for value in args if isinstance(value, Tensor)]
            calls.sent.append(sum(tensor.nbytes for tensor in tensors))
            return olds[name](*args, **kwargs)

        return call

    for name in COLLECTIVES:
        setattr(dist, name, noting(name))
    try:
        with CommDebugMode() as mode:
            yield
    finally:
        for name, old in olds.items():
            setattr(dist, name, old)
    for kind, count in mode.get_comm_counts().items():
        if "functional" in str(kind):
            calls.names += ["by an operator"] * count


@contextmanager
def no_count() -> Iterator[None]:
    yield
