"""Adafactor inside DeepSpeed's ZeRO, stages 1 and 2, which take its parameters' shapes away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..plan import flat as flat_pieces
from .factored import FactoredOptimizer

Params = list[Tensor]


class InZero(FactoredOptimizer):
    """Cuts ZeRO's vectors into pieces of parameters again, so that an Adafactor can step on them.

    ZeRO writes the parameters of each group into a vector, one after another, and divides it
    evenly. The group then has this process's part instead of the parameters. Before each step this
    class gives the optimizer a view of each parameter's piece, which `declare_shard` declares, and
    afterwards ZeRO its vector back. Without ZeRO it changes nothing.

    It uses nothing of DeepSpeed but what every optimizer sees. At the first step it compares the
    pieces with the parameters: another order is an error on all processes.

    Example:
        >>> from fusedstep.hf import Adafactor
        >>> from fusedstep.optim import InZero
        >>> class ZeroAdafactor(InZero, Adafactor):
        ...     pass
        >>> opt = ZeroAdafactor(torch.nn.Linear(8, 8).parameters())  # for deepspeed.initialize
    """

    _whole: dict[int, Params]  # by the identity of a group: the parameters that it was given with
    _cut: dict[Tensor, tuple[Params, Params]]  # by vector: those that train, and their pieces
    _checked: set[Tensor]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        self.__dict__.setdefault("_whole", {})[id(group)] = list(group["params"])
        self.__dict__.setdefault("_cut", {})
        self.__dict__.setdefault("_checked", set())

    @contextmanager
    def in_pieces(self) -> Iterator[Params]:
        """While it lasts, the groups have pieces of parameters. Gives the vectors that they are
        cut from."""
        before = [group["params"] for group in self.param_groups]
        vectors = []
        for group in self.param_groups:
            if len(group["params"]) == 1 and id(vector := group["params"][0]) not in self._given:
                if vector not in self._cut:
                    self._cut[vector] = self._pieces(vector, self._whole[id(group)])
                group["params"] = self._cut[vector][1]
                # ZeRO looks for a state of the vector, and so makes an empty one.
                self.state.pop(vector, None)
                vectors.append(vector)
        try:
            yield vectors
        finally:
            for group, params in zip(self.param_groups, before, strict=True):
                group["params"] = params

    def _pieces(self, vector: Tensor, given: Params) -> tuple[Params, Params]:
        params = [param for param in given if param.requires_grad and param.numel()]
        pieces: Params = []
        for param, start, own in _parts(vector, params):
            piece = torch.nn.Parameter(own)
            flat_pieces.declare_shard(piece, param.shape, start)
            pieces.append(piece)
        return params, pieces

    def _check_order(self, vector: Tensor) -> None:
        params, pieces = self._cut[vector]
        is_right = all(
            torch.equal(own.to(param), param.flatten()[start : start + len(own)])
            for param, start, own in _parts(vector, params)
        )
        piece = flat_pieces.piece_of(pieces[0])
        assert piece is not None
        wrong = [rank for rank, found in enumerate(piece.processes.gather(is_right)) if not found]
        if wrong:
            raise RuntimeError(
                f"InZero: ZeRO's vector of {len(params)} parameters does not have them one after "
                f"another, divided evenly over all processes (on ranks {wrong}). Leave out "
                "round_robin_gradients and parameter_alignment, and parallelism besides ZeRO's; "
                "or use FSDP2 (fully_shard), or an elementwise optimizer such as AdamW."
            )
        self._checked.add(vector)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        with self.in_pieces() as vectors:
            if vectors and closure is not None:
                raise RuntimeError(
                    "InZero: step takes no closure inside ZeRO, which makes the gradients before "
                    "it. Call the engine's step() without one."
                )
            for vector in vectors:
                if vector not in self._checked:
                    self._check_order(vector)
                _set_grads(vector, self._cut[vector][1])
            try:
                return super().step(closure)
            finally:
                for vector in vectors:  # ZeRO frees its gradients, too
                    for piece in self._cut[vector][1]:
                        piece.grad = None

    def state_dict(self) -> dict[str, Any]:
        with self.in_pieces():
            return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        with self.in_pieces():
            super().load_state_dict(state_dict)


def _parts(vector: Tensor, params: Params) -> Iterator[tuple[Tensor, int, Tensor]]:
    """Each parameter, the start of what this process has of it, and that. All are in a row, of
    which this process has the part `vector`."""
    begin = torch.distributed.get_rank() * vector.numel()  # from the parameter's first element
    for param in params:
        start, end = (
            min(max(place, 0), param.numel()) for place in (begin, begin + vector.numel())
        )
        yield param.detach(), start, vector.detach()[start - begin : end - begin]
        begin -= param.numel()


def _set_grads(vector: Tensor, pieces: Params) -> None:
    if vector.grad is not None:
        sizes = [piece.numel() for piece in pieces]
        padding = vector.numel() - sum(sizes)
        for piece, grad in zip(pieces, vector.grad.split([*sizes, padding]), strict=False):
            piece.grad = grad
