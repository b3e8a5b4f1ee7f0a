"""What every backend offers, and what it makes of a bucket: one call for a step, or phases.

A rule without sums is one walk over memory. A factored rule (Adafactor) goes through phases:

    read1      reads the gradients; leaves in `sums` what the rest of the step needs of them
    finish     column moments; leaves in `sum_u2` the sum of u^2 of each tensor, of the part that is
               here
    update     step sizes, then parameters and momentum

Between two phases the host may add up these sums over processes that hold parts of the tensors.
Where nothing is exchanged, `launch` does all phases in one call, and there are no such buffers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import devices
from .bucket import Bucket

# Changes tensors in place, as an all-reduce does. Called with the `sums` of all buckets that are
# exchanged, on all their devices, and later with their `sum_u2`.
Exchange = Callable[[list[Tensor]], None]


class StepInputs(NamedTuple):
    """What changes from step to step. The rows of scalars are float64 and on the host, or on the
    bucket's device if that is where its counters are: then nothing may wait for them."""

    scalars: Tensor
    inv_grad_scale: Tensor | None = None
    found_inf: Tensor | None = None


class Launcher(ABC):
    """One bucket, prepared by its backend: carries out its steps. A step changes nothing where
    `found_inf` is not zero."""

    # Of a bucket that is exchanged: see `exchange_buffers`.
    sums: Tensor
    sum_u2: Tensor

    def __init__(self, backend: Backend, bucket: Bucket) -> None:
        self.backend = backend
        self.bucket = bucket

    @abstractmethod
    def scratch_bytes(self) -> int:
        """Memory that is kept between steps, beside the tensors."""

    @abstractmethod
    def launch(self, inputs: StepInputs) -> None:
        """All phases."""

    def read1(self, inputs: StepInputs) -> None:  # noqa: B027 (nothing to do is an answer)
        """The first phase of a bucket that is exchanged; nothing for a rule without sums."""

    def finish(self, inputs: StepInputs) -> None:  # noqa: B027
        """The second phase; nothing for a rule without sums."""

    def update(self, inputs: StepInputs) -> None:
        """The last phase; for a rule without sums the whole step."""
        self.launch(inputs)


class Backend(ABC):
    """A way to carry out steps: where it runs, or why it cannot."""

    name: str

    @abstractmethod
    def why_absent(self) -> str:
        """Empty if the backend can run on some device here, else the reason."""

    @abstractmethod
    def devices(self) -> tuple[str, ...]:
        """The types of devices whose tensors it updates."""

    @abstractmethod
    def describe(self) -> str:
        """What it was built for and what it runs on, in a line."""

    @abstractmethod
    def prepare(self, bucket: Bucket, exchanged: bool = False) -> Launcher:
        """Cuts the bucket's tensors into work. Once for each plan."""


def sums_layout(bucket: Bucket) -> list[int]:
    """Where the sums of each tensor begin in `Launcher.sums`, and at the end their number.

    matrices   of each matrix: sums of g^2 down the columns, sums of g^2 / row down the columns, the
               sum of the row moments; then the tensor's sum of p^2
    vectors    the sum of p^2
    """
    starts = [0]
    for member in bucket.members:
        length = 1
        if bucket.kind == "matrix":
            rows, cols = member.param.shape[-2:]
            length += member.param.numel() // (rows * cols) * (2 * cols + 1)
        starts.append(starts[-1] + length)
    return starts


def exchange_buffers(bucket: Bucket) -> tuple[Tensor, Tensor]:
    """`sums` and `sum_u2` of a bucket: what its phases leave for an exchange."""
    dtype = devices.wide(bucket.device)
    counts = (sums_layout(bucket)[-1], len(bucket.members))
    if bucket.kind == "elementwise":
        counts = (0, 0)
    sums, sum_u2 = (torch.zeros(n, dtype=dtype, device=bucket.device) for n in counts)
    return sums, sum_u2
