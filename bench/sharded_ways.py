"""What `python -m bench.sharded` races: ways to take a step over parameters that are split by rows,
as FSDP2 splits them."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from bench.lists import DTYPES, ParameterList
from bench.models import Gpt
from bench.optimizers import RULES
from bench.providers import OURS, Build

GATHER = "gather"  # every process takes the whole step with ours
OPERATORS = "dtensor-operators"  # transformers' formulas, with torch's operators on DTensors
ALGORITHM = "adafactor-hf-trainer"  # OPERATORS has the formulas of this rule

Step = Callable[[], object]
# It has another name since torch 2.13, which warns of the old one.
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@cache
def transformer() -> ParameterList:
    """A small GPT: 19M parameters in 100 tensors."""
    with torch.device("meta"):
        model = Gpt(vocabulary=96, context=128, width=512, layers=6, dropout=0.0)
    return ParameterList("gpt-19m", tuple(tuple(param.shape) for param in model.parameters()))


def ways_of(rule: str) -> dict[str, Build]:
    """Who takes part in the race of a rule, ours first. On a CPU nobody would choose
    torch-plain."""
    own = RULES[rule].providers_on("cpu")
    wanted = ("torch-fused", "torch-foreach", "transformers")
    ways: dict[str, Build] = {OURS: own[OURS], GATHER: own[OURS]}
    ways |= {name: own[name] for name in wanted if name in own}
    if rule == ALGORITHM:
        ways[OPERATORS] = own[OURS]
    return ways


def prepared(name: str, build: Build, params: list[torch.nn.Parameter]) -> tuple[Any, Step]:
    """An optimizer or what stands for it, and its step."""
    made: Any = {GATHER: Gathered, OPERATORS: Operators}.get(name)
    optimizer = build(params) if made is None else made(params, build)
    return optimizer, optimizer.step


def sharded_parameters(
    chosen: ParameterList, dtype: str, mesh: DeviceMesh
) -> list[torch.nn.Parameter]:
    """The list's parameters and gradients, as FSDP2 holds them."""
    found = []
    for value, gradient in chosen.tensors(DTYPES[dtype]):
        param = torch.nn.Parameter(distribute_tensor(value, mesh, [Shard(0)]))
        param.grad = distribute_tensor(gradient, mesh, [Shard(0)])
        found.append(param)
    return found


def held_rows(rows: int, processes: int, rank: int) -> slice:
    """The rows of a tensor that a process holds."""
    each = math.ceil(rows / processes)
    return slice(min(rank * each, rows), min((rank + 1) * each, rows))


class Gathered:
    """Gathers all parameters and gradients in two messages, takes the whole step in every process,
    and keeps the own rows. That is the best that can be done without sharing sums."""

    def __init__(self, params: list[torch.nn.Parameter], build: Build) -> None:
        processes, rank = dist.get_world_size(), dist.get_rank()
        self.locals = [_local(param) for param in params]
        self.grads = [_local(param.grad) for param in params]
        self.whole = [torch.nn.Parameter(torch.empty(p.shape, dtype=p.dtype)) for p in params]
        for param in self.whole:
            param.grad = torch.empty_like(param)
        # The first process holds most. The others send as many numbers, so that all are alike.
        length = sum(param[held_rows(param.shape[0], processes, 0)].numel() for param in self.whole)
        self.own = torch.zeros(length, dtype=params[0].dtype)
        self.all = torch.zeros(processes * length, dtype=params[0].dtype)
        self.sent = _cut(self.own, [own.shape for own in self.locals])
        self.parts: list[list[Tensor]] = [[], []]  # of parameters and of gradients
        self.sources: list[Tensor] = []
        for number, room in enumerate(self.all.chunk(processes)):
            held = [
                param.data[held_rows(param.shape[0], processes, number)] for param in self.whole
            ]
            self.sources += _cut(room, [part.shape for part in held])
            self.parts[0] += held
            if number == rank:
                self.kept = held
            for param in self.whole:
                assert param.grad is not None
                self.parts[1].append(param.grad[held_rows(param.shape[0], processes, number)])
        self.optimizer = build(self.whole)

    def step(self) -> None:
        for parts, own in zip(self.parts, (self.locals, self.grads), strict=True):
            torch._foreach_copy_(self.sent, own)
            all_gather(self.all, self.own)
            torch._foreach_copy_(parts, self.sources)
        self.optimizer.step()
        torch._foreach_copy_(self.locals, self.kept)


def _local(tensor: Any) -> Tensor:
    own: Tensor = tensor._local_tensor
    return own


def _cut(numbers: Tensor, shapes: list[torch.Size]) -> list[Tensor]:
    """Views of the beginning of a vector."""
    sizes = [shape.numel() for shape in shapes]
    pieces = numbers[: sum(sizes)].split(sizes)
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


class Operators:
    """transformers' Adafactor as one would write it for DTensors: an operator after another, which
    adds up over processes whenever it needs a sum."""

    def __init__(self, params: list[torch.nn.Parameter], build: Build) -> None:
        self.params = params
        self.lr = RULES[ALGORITHM].settings["lr"]
        self.steps = 0
        self.moments: list[list[Tensor]] = [[] for _ in params]

    @torch.no_grad()
    def step(self) -> None:
        self.steps += 1
        weight = self.steps**-0.8
        for param, moments in zip(self.params, self.moments, strict=True):
            assert param.grad is not None
            grad = param.grad.float()
            squares = grad * grad + 1e-30
            if param.dim() > 1:
                found = [squares.mean(-1), whole(squares.sum(-2)) / squares.shape[-2]]
            else:
                found = [squares]
            if not moments:
                moments += map(torch.zeros_like, found)
            for moment, new in zip(moments, found, strict=True):
                moment.lerp_(new, weight)
            if param.dim() > 1:
                row, column = moments
                mean = whole(row.sum(-1, keepdim=True)) / row.shape[-1]
                grad = grad * (row / mean).rsqrt().unsqueeze(-1) * column.rsqrt().unsqueeze(-2)
            else:
                grad = grad * moments[0].rsqrt()
            rms = (whole((grad * grad).sum()) / grad.numel()).sqrt()
            result: Any = param.float() - grad * (self.lr / rms.clamp(min=1.0))
            # torch does not split a dimension that has fewer rows than there are processes.
            own: Any = param
            own.copy_(result.redistribute(placements=own.placements))


def whole(tensor: Any) -> Any:
    """A DTensor whose sums are taken: every process has all of it."""
    assert isinstance(tensor, DTensor)
    if not any(placement.is_partial() for placement in tensor.placements):
        return tensor
    return tensor.redistribute(placements=[Replicate()])
