"""The interface of backends. A bucket's launcher runs a step in one call, or stage by stage.

An elementwise rule is one walk over memory. A factored rule (Adafactor) has stages:

    sum_rows   only if columns are split: leaves the sums along the rows in `sums`
    read1      makes the row moments; leaves in `sums` what the later stages need. Of flat pieces it
               leaves the sums only: rows are partial, so `finish` makes their moments
    finish     makes the column moments; leaves in `sum_u2` the sum of u^2 over the part of each
               tensor that this process holds
    update     makes the step sizes, then writes parameters and momentum

Of sharded tensors, the host adds up these sums over processes between two stages. For all other
buckets `launch` does all stages in one call, and these buffers do not exist.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..rules.layout import CPU_RUN
from . import devices
from .bucket import Bucket, Member
from .flat import FlatShard
from .rows import HostRows

# The argument `backend=` of everything that runs steps.
BackendName = Literal["auto", "cpu", "cuda", "triton", "reference"]


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

    square_unit = CPU_RUN  # the most elements of a part of `square_sums`

    # Only of a bucket whose sums are exchanged.
    sums: Tensor
    starts: list[int]  # where the sums of each tensor begin, and the end: see `sums_layout`
    of_tensors: Tensor  # a row of OF_TENSOR for each

    def __init__(self, backend: Backend, bucket: Bucket) -> None:
        self.backend = backend
        self.bucket = bucket
        if bucket.mode is not None:
            self.starts = sums_layout(bucket)
            dtype = devices.widest_float(bucket.device)
            self.sums = torch.zeros(self.starts[-1], dtype=dtype, device=bucket.device)
            self.of_tensors = torch.tensor(
                [_of_tensor(member) for member in bucket.members], dtype=dtype
            ).to(bucket.device)

    @property
    def sum_u2(self) -> Tensor:
        """sum u^2 of each tensor: of what is here, later of all of it."""
        return self.of_tensors[:, OF_TENSOR.index("sum_u2")]

    @abstractmethod
    def scratch_bytes(self) -> int:
        """Memory that is kept between steps, without the tensors themselves."""

    @abstractmethod
    def launch(self, inputs: StepInputs) -> None:
        """Runs all stages."""

    # For the norm of the gradients. Its work list is made by the first call, so that only those pay
    # who want a norm.

    def square_sums(self, capturing: bool = False) -> Tensor:
        """Sums of squares of the gradients as they are stored: of each member its parts, in order.
        They are 0 without a gradient, and hold until the next call."""
        raise NotImplementedError

    def square_counts(self) -> list[int]:
        """How many parts each member has in `square_sums`. It depends on the sizes alone."""
        return [-(-n // self.square_unit) for n in self.bucket.gradient_sizes()]

    # The stages of a bucket whose sums are exchanged. Other buckets have only `launch`.

    def sum_rows(self, inputs: StepInputs) -> None:
        """Sums g^2 along the rows, if columns are split."""
        raise NotImplementedError

    def read1(self, inputs: StepInputs) -> None:
        raise NotImplementedError

    def finish(self, inputs: StepInputs) -> None:
        raise NotImplementedError

    def update(self, inputs: StepInputs) -> None:
        raise NotImplementedError


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
    def prepare(self, bucket: Bucket) -> Launcher:
        """Cuts the bucket's tensors into work. It is called once for each plan."""


# The numbers of each tensor in `Launcher.of_tensors`: sum u^2 of what is here; rows and columns of
# a whole matrix, elements of the whole tensor; 1 if a cap may change u. Then each process computes
# sum u^2 of its own rows. If not, all of them compute it from the exchanged sums.
# Of a flat piece: its first element, and how many it has.
OF_TENSOR = ("sum_u2", "rows", "cols", "elements", "capped", "start", "length")


def _of_tensor(member: Member) -> list[float]:
    shard = member.shard
    assert shard is not None
    run = shard.run if isinstance(shard, FlatShard) else (0, 0)
    return [0.0, *map(float, (*shard.sizes, shard.is_capped, *run))]


def sums_layout(bucket: Bucket) -> list[int]:
    """The index in `Launcher.sums` where the sums of each tensor begin. The last entry is the
    number of sums.

    matrices   for each matrix: sums of g^2 down the columns, sums of g^2 / row down the columns,
               the sum of the row moments; then the tensor's sum of p^2; then, if columns are split,
               sums of g^2 along the rows
    flat       sums of g^2 down the columns of each whole matrix; the sum of p^2; sums of g^2 along
               the rows of each whole matrix
    vectors    the sum of p^2
    """
    starts = [0]
    sizes = bucket.table[:, len(bucket.dtypes) + 1 :].tolist()
    for own in sizes:
        length = 1
        if bucket.kind == "matrix":
            batch, rows, cols = own
            if bucket.mode == "flat":
                length += batch * (cols + rows)
            else:
                length += batch * (2 * cols + 1) + (batch * rows if bucket.mode == "cols" else 0)
        starts.append(starts[-1] + length)
    return starts
