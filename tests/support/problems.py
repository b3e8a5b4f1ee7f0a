"""The Triton backend without a GPU. A `Problem` is a few steps for every backend, with bounds for
the errors. Launches run as PTX on the executor."""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import fusedstep.optim
from fusedstep.backends.triton import TritonBackend
from tests.support.cases import Case, Params, assert_same, make_params, same_bits, set_grads, states
from tests.support.rule_cases import is_factored

Run = tuple[torch.optim.Optimizer, Params]
GUARD = 64  # elements before and after a tensor that must not change


def placed(tensor: Tensor, offset: int = 0) -> Tensor:
    """A copy with a guard around it. With an offset its address is not a multiple of 16."""
    filled = math.nan if tensor.is_floating_point() else 77
    room = tensor.new_full((tensor.numel() + 2 * GUARD + offset,), filled)
    inner = room[GUARD + offset : GUARD + offset + tensor.numel()].view(tensor.shape)
    return inner.copy_(tensor.detach())


def assert_room_is_untouched(tensor: Tensor) -> None:
    room = tensor.new_empty(0).set_(tensor.untyped_storage())
    first = tensor.storage_offset()
    assert room[:first].isnan().all() and room[first + tensor.numel() :].isnan().all()


def _rounded(tensor: Tensor, dtype: torch.dtype, exact: bool) -> Tensor:
    return tensor.detach().to(dtype).to(torch.float64 if exact else dtype)


@dataclass(frozen=True)
class Problem:
    """A few steps of an optimizer. Every backend gets the same numbers."""

    case: Case
    shapes: list[tuple[int, ...]]
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)  # the parameters take them in turns
    steps: int = 2
    offset: int = 0  # moves parameters and gradients this many elements off their alignment
    groups: tuple[dict[str, Any], ...] = ({},)  # the options of the groups
    chain: int = 0  # the number of additions in a row in the longest sum, if there are many
    prepare: Callable[[Any, Params, int], None] | None = None  # before each step

    def run(self, backend: str, exact: bool = False) -> Run:
        """Takes all steps. With `exact`, everything is float64."""
        return self.train(self.start(exact), backend, exact)

    def start(self, exact: bool = False) -> Params:
        numbers = make_params(self.shapes, torch.float64)
        return [
            torch.nn.Parameter(placed(_rounded(number, dtype, exact), self.offset))
            for number, dtype in zip(numbers, itertools.cycle(self.dtypes), strict=False)
        ]

    def train(self, params: Params, backend: str, exact: bool = False) -> Run:
        """Takes all steps on `params`. Gradients follow the order of `shapes`."""
        groups = [
            {"params": params[k :: len(self.groups)], **options}
            for k, options in enumerate(self.groups)
        ]
        optimizer = self.case.make(groups, backend=backend, **self._exact_options(exact))
        in_order = params if self.shapes[0] == tuple(params[0].shape) else params[::-1]
        for step in range(self.steps):
            self._give_gradients(in_order, step, exact)
            if self.prepare:
                self.prepare(optimizer, params, step)
            before = [param.grad.clone() for param in params]
            optimizer.step()
            for param, grad in zip(params, before, strict=True):
                assert_room_is_untouched(param)
                if getattr(optimizer, "grad_scale", None) is None:
                    assert same_bits(param.grad, grad)
        return optimizer, params

    def _give_gradients(self, params: Params, step: int, exact: bool) -> None:
        numbers = make_params(self.shapes, torch.float64)
        # float16 does not hold the square of 0.01.
        set_grads(numbers, step, 1.0 if torch.float16 in self.dtypes else 0.01)
        for param, number, dtype in zip(params, numbers, itertools.cycle(self.dtypes)):
            param.grad = placed(_rounded(number.grad, dtype, exact), self.offset)

    def _exact_options(self, exact: bool) -> dict[str, Any]:
        """torch's Adafactor takes eps[0] from the dtype, and the exact run must use the same."""
        if not exact or self.case.ours is not fusedstep.optim.Adafactor:
            return {}
        eps1, eps2 = self.case.options.get("eps", (None, 1e-3))
        if eps1 is not None:
            return {}
        (dtype,) = self.dtypes
        return {"eps": (torch.finfo(dtype).eps, eps2)}

    def check(self) -> None:
        """Asserts that Triton's results are the reference's, bit by bit or within the bound."""
        found, reference = self.run("triton"), self.run("reference")
        if is_factored(self.case):
            self.assert_near(found, reference, self.run("reference", exact=True))
        else:
            assert_same(*found, *reference)

    def assert_near(self, found: Run, reference: Run, exact: Run) -> None:
        """Sums have another order than the reference's, so results differ, but both must be near
        float64. An error may be twice the reference's plus a floor, since the reference can be
        exact by luck. The floor:

        parameter   half a unit of its largest number for each step that rounds it when stored,
                    plus UNITS units of the update in the compute dtype
        momentum    the same, with its own largest number
        moments     for each number, half a unit for each such step, plus UNITS
        rms         as moments, stored in the parameter's dtype: it is the rms before the step

        A sum of a `chain` of numbers has an error of sqrt(chain / 3) / 5 units (one sigma: the
        partial sums grow steadily, and each rounding is uniform). The worst of a few thousand sums
        has four to five times that. So moments may be sqrt(chain) / 2 units further away.

        For a float64 parameter the exact run is the reference itself, so its error seems to be
        zero. It is taken to be UNITS, which triples UNITS there.

        UNITS is 2: a dozen half units may add up in a number, from a sum of positive numbers, the
        average with the old value, a quotient and two roots. The largest error in float32 was 2.5
        units for moments, 8 with a chain of 256 (2026-11-21).
        """
        for index, name, error, other, floor in self.errors(found, reference, exact):
            bound = 2 * other + floor
            where = f"{name} of {index} {tuple(found[1][index].shape)}"
            assert error <= bound, f"{where}: {error / floor:.2f} floors, reference {other / floor}"

    def errors(
        self, found: Run, reference: Run, exact: Run
    ) -> Iterator[tuple[int, str, Tensor, Tensor, Tensor]]:
        """(parameter, name, error, the reference's error, floor) for every tensor."""
        starts = make_params(self.shapes, torch.float64)
        for index, start in enumerate(starts):
            values = [
                {"parameter": run[1][index].detach(), **states(run[0], run[1][index])}
                for run in (found, reference, exact)
            ]
            assert values[0].keys() == values[1].keys() == values[2].keys()
            if not start.numel():
                continue
            dtype = found[1][index].dtype
            unit = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
            units = UNITS if dtype != torch.float64 else 3 * UNITS
            for name, right in values[2].items():
                own, other = values[0][name], values[1][name]
                if name == "step":
                    assert own == other == right
                    continue
                right = right.double()
                stored = torch.finfo(dtype if name == "RMS" else own.dtype).eps / 2 * self.steps
                if name in ("parameter", "exp_avg"):
                    largest = right.abs().max()
                    update = (right - start).abs().max() if name == "parameter" else largest
                    floor, scale = stored * largest + units * unit * update, torch.ones(())
                else:
                    of_sums = math.sqrt(self.chain) / 2
                    floor, scale = torch.tensor(stored + (units + of_sums) * unit), right.abs()
                yield index, name, *(_error(x, right, scale) for x in (own, other)), floor


UNITS = 2


def _error(value: Tensor, right: Tensor, scale: Tensor) -> Tensor:
    value = value.double()
    same = (value == right) | (value.isnan() & right.isnan())
    return torch.where(same, 0.0, (value - right).abs() / scale).nan_to_num(math.inf).max()


# Launches on the PTX executor.


@functools.cache
def device(arch: int) -> Any:
    """The executor's device. All tests share it, because it keeps compiled kernels."""
    from tests.ptxrun.triton_launch import TritonOnCpu

    return TritonOnCpu(arch)


@contextmanager
def tensors_of_the_cpu_taken() -> Iterator[None]:
    with (
        mock.patch.object(TritonBackend, "why_absent", return_value=""),
        mock.patch.object(TritonBackend, "devices", return_value=("cpu",)),
    ):
        yield


@contextmanager
def on_ptx(
    arch: int = 90, schedule: int | None = None, plant: Any = None
) -> Iterator[Counter[str]]:
    """Runs launches on the PTX executor. They can access the bucket's tensors and nothing else.
    Scratch starts as nan in every step. `plant` may change (kernel, arguments)."""
    from fusedstep.kernels import launch
    from tests.ptxrun import Memory

    real, counted, buckets = launch.TritonLauncher.launch, Counter(), []
    real_norm = launch.TritonLauncher._run_squares

    def begin(self: Any, inputs: Any) -> None:
        buckets[:] = [self.bucket]
        for own in self.launches:
            for name in ("sums", "partials"):
                own.arguments.get(name, torch.empty(0)).fill_(math.nan)
        real(self, inputs)

    def begin_norm(self: Any, table: Tensor, sums: Tensor, stream: Any) -> None:
        buckets[:] = [self.bucket]
        real_norm(self, table, sums.fill_(math.nan), stream)

    def run(kernel: Any, programs: int, arguments: dict[str, Any], options: Any) -> None:
        (bucket,), memory = buckets, Memory()
        if plant:
            kernel, arguments = plant(kernel, dict(arguments))
        for index, member in enumerate(bucket.members):
            for name, tensor in zip(
                ("param", "grad", *member.state_keys), bucket.tensors(index), strict=True
            ):
                memory.add(tensor.detach(), f"{name} {index}")
        if bucket.rms is not None:
            memory.add(bucket.rms, "rms")
        for name, value in arguments.items():
            if isinstance(value, Tensor):
                memory.add(value, name)
        counted.update(
            device(arch).launch(
                kernel,
                programs,
                arguments,
                options["num_warps"],
                memory,
                schedule,
                enable_fp_fusion=False,
            )
        )

    with (
        tensors_of_the_cpu_taken(),
        mock.patch.object(launch.TritonLauncher, "_run_squares", begin_norm),
        mock.patch.object(launch.TritonLauncher, "launch", begin),
        mock.patch.object(launch, "run", run),
    ):
        yield counted
