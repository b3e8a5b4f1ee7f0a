"""The plain torch backend, for every kind of device: runs the rule texts on tensors.

It is slow, and it is the reference: sums run in the order of `rules/layout.py`, and on a CPU every
other backend must equal it bit for bit. It reads nothing back to the host.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from ..plan import devices
from ..plan.bucket import Bucket
from ..plan.launcher import OF_TENSOR, Backend, Launcher, StepInputs
from .reference_flat import FlatStep
from .reference_steps import KINDS, OneStep, square_sums


class ReferenceBackend(Backend):
    """The rule texts on torch tensors."""

    name = "reference"

    def why_absent(self) -> str:
        return ""

    def devices(self) -> tuple[str, ...]:
        return ("cpu", "cuda", "xpu", "mps")

    def describe(self) -> str:
        return f"plain torch {torch.__version__}, on {', '.join(self.devices())}"

    def prepare(self, bucket: Bucket) -> Launcher:
        return ReferenceLauncher(self, bucket)


def flat_launcher(backend: Backend, bucket: Bucket) -> Launcher:
    """Updates flat pieces of matrices for a backend whose kernels do not take them."""
    _warn_of_flat(bucket.device.type)
    return ReferenceLauncher(backend, bucket)


@functools.cache
def _warn_of_flat(device_type: str) -> None:
    warnings.warn(
        f"Adafactor: flat pieces of matrices on {device_type} are updated by torch's operations. "
        "The results are right, but a step is slower than with kernels. FSDP2 (fully_shard) keeps "
        "the rows that kernels need.",
        stacklevel=2,
    )


class ReferenceLauncher(Launcher):
    """Updates the tensors of a bucket one by one."""

    def __init__(self, backend: Backend, bucket: Bucket) -> None:
        super().__init__(backend, bucket)
        self._under_way: list[OneStep] = []  # kept between stages

    def scratch_bytes(self) -> int:
        return sum(step.sums.nbytes for step in self._under_way)

    def square_sums(self, capturing: bool = False) -> Tensor:
        """With float64 no square overflows, unless the gradient is float64 itself."""
        wide = devices.widest_float(self.bucket.device)
        sums = [torch.zeros(0, dtype=wide, device=self.bucket.device)]
        for index, count in enumerate(self.square_counts()):
            if self.bucket.members[index].is_present and count:
                grad = self.bucket.gradient(index)
                in_memory = grad.as_strided((grad.numel(),), (1,))
                sums.append(square_sums(in_memory.to(wide)))
            else:
                sums.append(sums[0].new_zeros(count))
        return torch.cat(sums)

    def launch(self, inputs: StepInputs) -> None:
        for step in self._begin(inputs):
            step.sum_rows()
            step.read1()
            step.finish()
            step.update()

    def sum_rows(self, inputs: StepInputs) -> None:
        self._start(inputs)
        for step in self._under_way:
            step.sum_rows()

    def _start(self, inputs: StepInputs) -> None:
        """Begins a step in stages. Each tensor's sums are where the exchange changes them."""
        self._under_way = list(self._begin(inputs))
        for step in self._under_way:
            step.sums = self.sums[self.starts[step.index] : self.starts[step.index + 1]]
            step.of_tensor = dict(zip(OF_TENSOR, self.of_tensors[step.index].unbind(), strict=True))

    def read1(self, inputs: StepInputs) -> None:
        if self.bucket.mode != "cols":
            self._start(inputs)
            for step in self._under_way:
                step.sum_rows()
        for step in self._under_way:
            step.read1()

    def finish(self, inputs: StepInputs) -> None:
        for step in self._under_way:
            step.finish()

    def update(self, inputs: StepInputs) -> None:
        for step in self._under_way:
            step.update()
        self._under_way = []

    def _begin(self, inputs: StepInputs) -> Iterator[OneStep]:
        kind = FlatStep if self.bucket.mode == "flat" else KINDS[self.bucket.kind]
        scalars = inputs.scalars
        # Scalars on a device stay tensors: the host never reads them.
        on_host = devices.on_host(scalars)
        rows = scalars.tolist() if on_host else [row.unbind() for row in scalars.unbind()]
        for index, row in enumerate(self.bucket.rows.scalar_row_of.tolist()):
            if not self.bucket.members[index].is_present:
                continue
            yield kind(self.bucket, index, rows[row], inputs)
