"""The interface of backends. A bucket's launcher runs a step in one call, or stage by stage.

An elementwise rule is one walk over memory. A factored rule (Adafactor) has three stages:

    read1      reads the gradients; leaves in `sums` what the later stages need
    finish     makes the column moments; leaves in `sum_u2` the sum of u^2 over the part of each
               tensor that this process holds
    update     makes the step sizes, then writes parameters and momentum

Between two stages the host may add up these sums over processes that each hold a part of the
tensors. Without an exchange, `launch` does all stages in one call, and these buffers do not exist.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import devices
from .bucket import Bucket
from .rows import HostRows

# Adds up tensors over processes in place, as an all-reduce does. It is called with the `sums` of
# all factored buckets, which may be on several devices, and later with their `sum_u2`.
Exchange = Callable[[list[Tensor]], None]


class StepInputs(NamedTuple):
    """What changes from step to step. The rows of scalars are float64. They are a tensor on the
    bucket's device if its counters are there; the host must then not wait for them."""

    rows: HostRows | Tensor
    inv_grad_scale: Tensor | None = None
    found_inf: Tensor | None = None
    capturing: bool = False  # whether a CUDA graph captures the step

    @property
    def scalars(self) -> Tensor:
        """The rows as a tensor, wherever they are."""
        return self.rows.tensor() if isinstance(self.rows, HostRows) else self.rows


class Launcher(ABC):
    """Runs the steps of one bucket, prepared by its backend. A step changes nothing if `found_inf`
    is not zero."""

    # Only with an exchange: see `exchange_buffers`.
    sums: Tensor
    sum_u2: Tensor

    def __init__(self, backend: Backend, bucket: Bucket) -> None:
        self.backend = backend
        self.bucket = bucket

    @abstractmethod
    def scratch_bytes(self) -> int:
        """Memory that is kept between steps, without the tensors themselves."""

    @abstractmethod
    def launch(self, inputs: StepInputs) -> None:
        """Runs all stages."""

    def read1(self, inputs: StepInputs) -> None:  # noqa: B027 (not abstract)
        """The first stage, if there is an exchange. An elementwise rule does nothing here."""

    def finish(self, inputs: StepInputs) -> None:  # noqa: B027
        """The second stage. An elementwise rule does nothing here."""

    def update(self, inputs: StepInputs) -> None:
        """The last stage. For an elementwise rule this is the whole step."""
        self.launch(inputs)


class Backend(ABC):
    """One way to run steps: it knows which devices it runs on, or why it cannot run."""

    name: str

    @abstractmethod
    def why_absent(self) -> str:
        """Empty if the backend can run on some device here, else the reason."""

    @abstractmethod
    def devices(self) -> tuple[str, ...]:
        """The device types whose tensors it updates."""

    @abstractmethod
    def describe(self) -> str:
        """One line: what it was built for and what it runs on."""

    @abstractmethod
    def prepare(self, bucket: Bucket, exchanged: bool = False) -> Launcher:
        """Cuts the bucket's tensors into work. It is called once for each plan."""


def sums_layout(bucket: Bucket) -> list[int]:
    """The index in `Launcher.sums` where the sums of each tensor begin. The last entry is the
    number of sums.

    matrices   for each matrix: sums of g^2 down the columns, sums of g^2 / row down the columns,
               the sum of the row moments; then the tensor's sum of p^2
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
    """The buffers `sums` and `sum_u2` of a bucket, which its stages fill for the exchange."""
    dtype = devices.widest_float(bucket.device)
    counts = (sums_layout(bucket)[-1], len(bucket.members))
    if bucket.kind == "elementwise":
        counts = (0, 0)
    sums, sum_u2 = (torch.zeros(n, dtype=dtype, device=bucket.device) for n in counts)
    return sums, sum_u2
