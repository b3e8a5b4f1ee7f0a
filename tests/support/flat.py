"""Flat pieces of parameters, in threads that stand for processes."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fusedstep.plan import flat
from tests.support.cases import Params
from tests.support.exchange import FakeProcesses

# Where runs end, as shares of a parameter's elements: inside rows, twice at one place, nowhere.
CUTS = {
    "halves": (0.4,),
    "uneven": (0.013, 0.013, 0.61),
    "tiny": (0.5, 0.501, 0.502),
    "whole": (0.0, 1.0),
}


class Ranks(FakeProcesses):
    """Processes that each are a thread while `run` lasts. Sums are taken in the order of ranks."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.barrier = threading.Barrier(size, timeout=60)
        self.given: list[Any] = [None] * size
        self.own = threading.local()

    def _exchanged(self, own: Any) -> list[Any]:
        self.given[self.own.rank] = own
        self.barrier.wait()
        found = [*self.given]
        self.barrier.wait()
        return found

    def add_up(self, numbers: Tensor) -> Callable[[], object]:
        assert numbers.dtype == torch.float64
        if self.own.rank == 0:
            self.seen.append(numbers.numel())
        numbers.copy_(torch.stack(self._exchanged(numbers.clone())).sum(0))
        return lambda: None

    def gather(self, own: Any) -> list[Any]:
        return self._exchanged(own)

    def run(self, calls: list[Callable[[], Any]]) -> list[Any]:
        """What each rank returned or raised."""
        found: list[Any] = [None] * self.factor

        def call(rank: int) -> None:
            self.own.rank = rank
            try:
                found[rank] = calls[rank]()
            except Exception as error:
                found[rank] = error

        threads = [threading.Thread(target=call, args=(rank,)) for rank in range(self.factor)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    def step(self, optimizers: list[Any]) -> None:
        for found in self.run([optimizer.step for optimizer in optimizers]):
            if found is not None:
                raise found


def runs_of(param: Tensor, cuts: tuple[float, ...]) -> list[tuple[int, int]]:
    ends = [0, *(int(cut * param.numel()) for cut in cuts), param.numel()]
    return list(itertools.pairwise(ends))


class Pieces:
    """Whole parameters, and the flat pieces of each rank."""

    def __init__(self, params: Params, cuts: tuple[float, ...]) -> None:
        self.params = params
        self.processes = Ranks(len(cuts) + 1)
        self.runs = [runs_of(param, cuts) for param in params]
        self.of_ranks = [
            [self._piece(param, *runs[rank]) for param, runs in zip(params, self.runs, strict=True)]
            for rank in range(len(cuts) + 1)
        ]

    def _piece(self, param: Tensor, start: int, end: int) -> torch.nn.Parameter:
        own = torch.nn.Parameter(param.detach().flatten()[start:end].clone())
        flat.declare(own, flat.FlatPiece(param.shape, start, end - start, self.processes))
        return own

    def set_grads(self) -> None:
        """The pieces of the parameters' gradients. FSDP1 gives none where nothing is."""
        for own in self.of_ranks:
            for piece, param, grad in zip(own, self.params, self.grads_of(own), strict=True):
                piece.grad = grad.clone() if piece.numel() and param.grad is not None else None

    def grads_of(self, own: Params) -> list[Tensor]:
        rank = next(k for k, other in enumerate(self.of_ranks) if other is own)
        return [
            (param if param.grad is None else param.grad).flatten()[slice(*runs[rank])]
            for param, runs in zip(self.params, self.runs, strict=True)
        ]

    def joined(self) -> list[Tensor]:
        return [
            torch.cat([own[k].detach() for own in self.of_ranks]).view(param.shape)
            for k, param in enumerate(self.params)
        ]
