"""Steps that share sums with processes that are not there: fake shards of plain tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fusedstep.plan.shards import Processes, Shard, Split, local
from tests.support.cases import Case, make_params, set_grads
from tests.support.problems import Problem

ROLES = ("rows", "cols", "batch")
# How many messages a step sends to one group: with a cap, and without. Vectors send one in turn 1.
MESSAGES = {"rows": (2, 1), "cols": (3, 3), "batch": (2, 1)}
DIMENSIONS = {"rows": -2, "cols": -1, "batch": 0, "elements": 0}  # that each role splits
# The share of each dimension that the first of two processes has. Some have nothing.
SHARES = {"halves": 1 / 2, "uneven": 4 / 5, "all": 1.0, "nothing": 0.0}


class FakeProcesses(Processes):
    """Processes that all hold the same numbers. `factor` is what adding them up multiplies by: 1
    stands for one process, which changes no bit."""

    def __init__(self, factor: int = 1) -> None:
        super().__init__(None, "cpu")
        self.factor = factor
        self.seen: list[int] = []  # the length of each message

    @property
    def ranks(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(range(self.factor))

    def device_for(self, own: torch.device) -> torch.device:
        return own

    def add_up(self, numbers: Tensor) -> Callable[[], object]:
        assert numbers.dtype == torch.float64
        self.seen.append(numbers.numel())
        numbers *= self.factor
        return lambda: None

    def gather(self, own: Any) -> list[Any]:
        return [own] * self.factor


class Threads(FakeProcesses):
    """Optimizers in two threads, each with its own part of every tensor. They take turns, since
    tools that run kernels on a CPU run one at a time."""

    def __init__(self) -> None:
        super().__init__(2)
        self.barrier = threading.Barrier(2, timeout=300)
        self.turn = threading.Lock()
        self.given: dict[int, Any] = {}  # by thread
        self.errors: list[BaseException] = []

    def step(self, optimizers: Sequence[Any]) -> None:
        self.given.clear()  # of threads that have ended
        threads = [threading.Thread(target=self._step, args=(own,)) for own in optimizers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]

    def _step(self, optimizer: Any) -> None:
        with self.turn:
            try:
                optimizer.step()
            except BaseException as error:
                self.errors.append(error)
                self.barrier.abort()

    def _exchanged(self, own: Any) -> list[Any]:
        self.given[threading.get_ident()] = own
        self.turn.release()
        try:
            self.barrier.wait()
            found = [self.given[key] for key in sorted(self.given)]
            self.barrier.wait()
        finally:
            self.turn.acquire()
        return found

    def add_up(self, numbers: Tensor) -> Callable[[], object]:
        self.seen.append(numbers.numel())
        parts = self._exchanged(numbers.clone())
        torch.add(*parts, out=numbers)
        return lambda: None

    def gather(self, own: Any) -> list[Any]:
        return self._exchanged(own)


def role_of(param: Tensor, role: str) -> str:
    """The role in which a parameter is split. A vector is split into its elements; one matrix,
    which is no batch, into its rows."""
    return {1: "elements", 2: role.replace("batch", "rows")}.get(param.dim(), role)


def share(
    optimizer: Any,
    processes: Processes,
    role: str = "rows",
    parts: int = 1,
    shapes: Sequence[torch.Size] | None = None,
) -> None:
    """Makes the optimizer take its parameters for parts of larger ones, which are `parts` times as
    large along the dimension of `role`, or have these `shapes`."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    given = {} if shapes is None else dict(zip(map(id, params), shapes, strict=True))

    def shard_of(param: Tensor) -> Shard | None:
        if param.dim() == 0 or (shapes is None and param.numel() == 0):
            return None
        own = role_of(param, role)
        whole = [*param.shape]
        whole[DIMENSIONS[own]] *= parts
        shape = given.get(id(param), torch.Size(whole))
        return Shard(shape, (Split(processes, own),), optimizer.is_capped)

    optimizer._shard_of, optimizer._may_share = shard_of, lambda: True


def exchanged(problem: Problem, processes: Processes, role: str = "rows") -> Problem:
    """The problem, with parameters that are shared in this role."""

    def prepare(optimizer: Any, params: Any, step: int) -> None:
        if "_shard_of" not in vars(optimizer):
            share(optimizer, processes, role)
        if problem.prepare:
            problem.prepare(optimizer, params, step)

    return replace(problem, prepare=prepare)


def check(problem: Problem, backend: str, role: str = "rows") -> None:
    """Asserts that results with an exchange are within the same bound as without one."""
    found = exchanged(problem, FakeProcesses(), role).run(backend)
    problem.assert_near(found, problem.run("reference"), problem.run("reference", exact=True))


@contextmanager
def mesh_of_two() -> Iterator[Any]:
    """A mesh of two processes of which only this one exists."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        yield init_device_mesh("cpu", (2,))
    finally:
        torch.distributed.destroy_process_group()


def check_parts(
    case: Case,
    backend: str,
    role: str,
    share_of_first: float,
    shapes: list[tuple[int, ...]],
    steps: int = 2,
) -> None:
    """Asserts that two processes with a part of each tensor make the steps of one with all of it.
    The second halves are much smaller, so a cap from one half alone would be wrong. The second step
    shows sums that are left from the first."""
    whole = make_params(shapes, torch.float64)
    one = case.make(whole, backend=backend)
    with mesh_of_two() as mesh:
        parts = [
            [torch.nn.Parameter(own) for own in part]
            for part in zip(
                *(_parts_of(p.detach(), role, share_of_first, mesh) for p in whole), strict=True
            )
        ]
        optimizers = [case.make(part, backend=backend) for part in parts]
        threads = Threads()
        for optimizer in optimizers:
            share(optimizer, threads, role, shapes=[param.shape for param in whole])
        for step in range(steps):
            set_grads(whole, step)
            for index, param in enumerate(whole):
                for dim, size in enumerate(param.shape):
                    param.grad.narrow(dim, size // 2, size - size // 2).mul_(1e-3)
                if param.dim() > 1:
                    param.grad[..., 0] = 0.0  # a moment of 0: no 0 / 0 where no rows are
                owns = _parts_of(param.grad, role, share_of_first, mesh)
                for part, own in zip(parts, owns, strict=True):
                    part[index].grad = own
            one.step()
            threads.step(optimizers)
        for index, param in enumerate(whole):
            for number, (optimizer, part) in enumerate(zip(optimizers, parts, strict=True)):
                where = f"{index} {tuple(param.shape)}, process {number}"
                _assert_is_part(part[index].detach(), param.detach(), number, where)
                for key, value in one.state[param].items():
                    if torch.is_tensor(value):
                        own = optimizer.state[part[index]][key]
                        _assert_is_part(own, value, number, f"{key} of {where}")


def _assert_is_part(part: Tensor, whole: Tensor, number: int, where: str) -> None:
    own = local(part)
    for dim, size in enumerate(own.shape):
        whole = whole.narrow(dim, (whole.shape[dim] - size) * number, size)
    torch.testing.assert_close(
        own, whole, rtol=1e-12, atol=1e-14, msg=lambda said: f"{where}: {said}"
    )


def _parts_of(tensor: Tensor, role: str, share_of_first: float, mesh: Any) -> list[Tensor]:
    """Both parts, as DTensors: those know what is a part and has no element."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor import Shard as Along

    dim = DIMENSIONS[role_of(tensor, role)] % tensor.dim()
    first = round(tensor.shape[dim] * share_of_first)
    return [
        DTensor.from_local(
            own.clone(),
            mesh,
            [Along(dim)],
            run_check=False,
            shape=tensor.shape,
            stride=tensor.stride(),
        )
        for own in tensor.split([first, tensor.shape[dim] - first], dim)
    ]
