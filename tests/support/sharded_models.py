"""Small models, their data, and the ways in which frameworks shard them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from tests.support.sharded import whole

WORDS = 37


class Net(nn.Module):
    """Uneven shards (37 rows), shards without elements (3 rows, 1 row, 2 elements), a batch of
    matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 20)
        self.up = nn.Linear(20, 64)
        self.norm = nn.LayerNorm(64)
        self.experts = nn.Parameter(torch.empty(6, 64, 12))
        self.few_rows = nn.Parameter(torch.empty(3, 72))
        self.row = nn.Parameter(torch.empty(1, 72))
        self.two = nn.Parameter(torch.empty(2))
        self.out = nn.Linear(72, WORDS)

    def forward(self, words: Tensor) -> Tensor:
        h = self.norm(torch.relu(self.up(self.embedding(words))))
        h = torch.einsum("...d,edk->...ek", h, self.experts).flatten(-2)
        h = h * (1 + self.few_rows.mean(0)) + self.row[0] * self.two[0] + self.two[1]
        return self.out(h)


class Mlp(nn.Module):
    """For tensor parallelism: `up` by columns, `down` by rows."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(WORDS, 24), nn.LayerNorm(24)
        self.up, self.down = nn.Linear(24, 48), nn.Linear(48, 24)
        self.out = nn.Linear(24, WORDS, bias=False)
        if tied:
            self.out.weight = self.embedding.weight

    def forward(self, words: Tensor) -> Tensor:
        h = self.norm(self.embedding(words))
        return self.out(h + self.down(torch.relu(self.up(h))))


def filled(model: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    for index, param in enumerate(model.parameters()):
        param.data.normal_(0, 0.05 * (1 + index % 3), generator=generator)
    return model


class Sharded(NamedTuple):
    """A model that is sharded in the way `kind`, and which part of each batch this process has."""

    kind: str
    model: Any
    rank: int
    size: int

    def loss(self, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(7 + step)
        words = torch.randint(0, WORDS, (8, 5), generator=generator)
        own = words.chunk(self.size)[self.rank]
        found = self.model(own).float().flatten(0, 1)
        return nn.functional.cross_entropy(found, ((own * 3 + 1) % WORDS).flatten())

    def named(self) -> dict[str, Tensor]:
        return dict(self.model.named_parameters())

    def one(self) -> Any:
        """A whole model with the same weights, for one process."""
        model = model_of(self.kind)
        for name, param in self.weights().items():
            model.get_parameter(name).data.copy_(param)
        return model

    def weights(self) -> dict[str, Tensor]:
        return {name: whole(param).detach().clone() for name, param in self.named().items()}


def model_of(kind: str) -> Any:
    """The model that is sharded in this way, whole."""
    own = Mlp(tied=kind == "tied") if kind in ("tp", "fsdp+tp", "tied") else Net()
    return filled(own).to(torch.bfloat16 if kind == "bfloat16" else torch.float32)


def line(size: int | None = None) -> DeviceMesh:
    return init_device_mesh("cpu", (size or dist.get_world_size(),))


def sharded(kind: str, mesh: DeviceMesh | None = None) -> Sharded:
    """The model, sharded over all processes, or over `mesh`."""
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

    model, rank, size = model_of(kind), dist.get_rank(), dist.get_world_size()
    if kind in ("tp", "fsdp+tp"):
        return _tensor_parallel(model, kind, size)
    options: dict[str, Any] = {}
    if kind == "hsdp":
        mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("replicate", "shard"))
    mesh = mesh or line()
    if kind == "cols":
        options["shard_placement_fn"] = lambda param: (
            Shard(1) if param.dim() == 2 and param.shape[1] % size == 0 else None
        )
    if kind == "mixed-precision":
        options["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    if kind == "bfloat16":
        options["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    if kind == "offload":
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=False)
    for name in ("up", "down", "out"):  # nested
        if hasattr(model, name) and not (kind == "tied" and name == "out"):
            fully_shard(getattr(model, name), mesh=mesh, **options)
    if kind == "ignored":
        options["ignored_params"] = {model.row, model.two}
    fully_shard(model, mesh=mesh, **options)
    return Sharded(kind, model, mesh.get_local_rank() if mesh.ndim == 1 else rank, mesh.size())


def _tensor_parallel(model: Any, kind: str, size: int) -> Sharded:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    if kind == "tp":
        parallelize_module(model, line(), plan)
        return Sharded(kind, model, 0, 1)
    both = init_device_mesh("cpu", (size // 2, 2), mesh_dim_names=("data", "tensor"))
    data, tensor = both["data"], both["tensor"]
    parallelize_module(model, tensor, plan)
    for own in (model.up, model.down):
        fully_shard(own, mesh=data)
    fully_shard(model, mesh=data)
    return Sharded(kind, model, data.get_local_rank(), data.size())


def average_plain(own: Sharded) -> None:
    """Averages the gradients that FSDP2 was told to ignore."""
    for param in own.named().values():
        if not isinstance(param, DTensor) and param.grad is not None:
            dist.all_reduce(param.grad)
            param.grad /= own.size


def copy_gradients(own: Sharded, one: Any) -> None:
    """Gives the whole model the gradients of the sharded one."""
    for name, param in own.named().items():
        grad = param.grad
        one.get_parameter(name).grad = None if grad is None else whole(grad).detach().clone()


def in_order(own: Sharded, one: Any) -> list[Any]:
    """The whole model's parameters, in the order of the sharded one's."""
    return [one.get_parameter(name) for name in own.named()]
