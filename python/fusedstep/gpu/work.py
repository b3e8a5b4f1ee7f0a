"""Makes work lists on a device from a bucket's tensors, and keeps them between steps."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..plan.bucket import Bucket
from ..plan.launcher import Backend, Launcher, StepInputs
from ..plan.rows import HostRows
from . import tables
from .cut import GRADIENT_UNIT, STAGES, UNITS, WITHOUT_TILES, Kind, Layout, stage_of
from .unit_sizes import UnitSizes

# The smallest float64 that rounds to infinity in float32.
ROUNDS_TO_INFINITY = (2.0 - 2.0**-24) * 2.0**127
MOST_ENTRIES = 2**31 - 1  # of a launch: programs and units have 32-bit numbers
T = TypeVar("T")
# Pairs: aligned or not, and the tensors.
ByAlignment = list[tuple[bool, list[int]]]

# For each mode and stage of a step, the kinds of work that belong to the other stages.
OF_OTHER_STAGES = {
    (mode, stage): {k for k in UNITS if k != "ELEMENTWISE" and stage_of(k, mode) != stage}
    for mode in ("rows", "cols", "pieces")
    for stage in ("sum_rows", *STAGES)
}


class DeviceLauncher(Launcher):
    """What all launches of a bucket read besides its tensors. Each backend adds its launches."""

    square_unit = GRADIENT_UNIT

    def __init__(self, backend: Backend, bucket: Bucket, by_value: int = 0) -> None:
        super().__init__(backend, bucket)
        self.device = bucket.device
        self.tables = tables.Tables(bucket, by_value)
        self.kept: list[Tensor] = []  # work lists and scratch
        self.stream = tables.current_stream(bucket.device)
        self.is_exchanged = bucket.mode is not None
        if self.is_exchanged:
            self.kept += [self.sums, self.of_tensors]
        self._square_sums: Tensor | None = None
        # The step that is between stages.
        self._inputs: StepInputs | None = None
        self._current: dict[str, Any] = {}

    @abstractmethod
    def _run(self, current: dict[str, Any], stream: Any, idle: set[str]) -> None:
        """Launches all work except the `idle` kinds. `current` holds the arguments that change
        every step. If `found_inf` is not zero, kernels write nothing."""

    @abstractmethod
    def _prepare_squares(self, entries: Tensor, elements: Tensor) -> None:
        """Prepares the launch that sums squares: `elements` are those of each gradient."""

    @abstractmethod
    def _run_squares(self, table: Tensor, sums: Tensor, stream: Any) -> None:
        """Launches it: an entry's sum is written at its place in `sums`."""

    def square_sums(self, capturing: bool = False) -> Tensor:
        with tables.on_device(self.device):
            if self._square_sums is None:
                units = entries(enumerate(self.square_counts()))
                self._square_sums = self.scratch(len(units), self.tables.scalar_dtype)
                if len(units):
                    sizes = torch.tensor(self.bucket.gradient_sizes(), device="cpu")
                    self._prepare_squares(self.upload(units), self.upload(sizes))
            stream = self.follow_stream()
            if len(self._square_sums):
                table = self.tables.table_of(self.bucket, capturing)
                self._run_squares(table, self._square_sums, stream)
            return self._square_sums

    def launch(self, inputs: StepInputs) -> None:
        idle = idle_kinds(self.bucket, inputs.rows)
        with tables.on_device(self.device):
            stream = self.follow_stream()
            self._run(self.current(inputs), stream, idle)

    def sum_rows(self, inputs: StepInputs) -> None:
        self._stage("sum_rows", inputs)

    def read1(self, inputs: StepInputs) -> None:
        self._stage("read1", inputs)

    def finish(self, inputs: StepInputs) -> None:
        self._stage("finish", inputs)

    def update(self, inputs: StepInputs) -> None:
        self._stage("update", inputs)
        self._inputs = None

    def _stage(self, stage: str, inputs: StepInputs) -> None:
        assert self.bucket.mode is not None
        idle = idle_kinds(self.bucket, inputs.rows) | OF_OTHER_STAGES[self.bucket.mode, stage]
        with tables.on_device(self.device):
            stream = self.follow_stream()
            if self._inputs is not inputs:  # upload once for all stages
                self._inputs = inputs
                self._current = self.current(inputs)
            self._run(self._current, stream, idle)

    def upload(self, tensor: Tensor) -> Tensor:
        self.kept.append(tables.upload(tensor, self.device))
        return self.kept[-1]

    def scratch(self, count: int, dtype: torch.dtype) -> Tensor:
        self.kept.append(torch.empty(count, dtype=dtype, device=self.device))
        return self.kept[-1]

    def follow_stream(self) -> Any:
        """Returns the current stream. If it changed, tells the allocator, so that it does not
        reuse memory that a kernel there still reads after the plan is dropped."""
        stream = tables.current_stream(self.device)
        if stream != self.stream:
            self.stream = stream
            other = tables.stream_object(self.device)
            for tensor in (*self.kept, *self.tables.held()):
                tensor.record_stream(other)
        return stream

    def current(self, inputs: StepInputs) -> dict[str, Any]:
        """The arguments that change every step."""
        return self.tables.current(self.bucket, *inputs)

    def scratch_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.kept, *self.tables.held()))


def codes_of(bucket: Bucket, codes: Mapping[torch.dtype, T]) -> list[T]:
    """The codes that kernels use for the dtypes of a bucket's slots. Raises for another dtype."""
    for dtype in bucket.dtypes:
        if dtype not in codes:
            first = bucket.members[0]
            raise ValueError(
                f"there are no kernels for {dtype}, the dtype of a tensor of the parameter of "
                f"shape {tuple(first.param.shape)} in group {first.group}: convert it to one of "
                f"{', '.join(map(str, codes))}"
            )
    return [codes[dtype] for dtype in bucket.dtypes]


def by_alignment(bucket: Bucket, columns: int = 1, slots: list[int] | None = None) -> ByAlignment:
    """Splits tensors by whether kernels can load 16 bytes at once: the addresses of `slots` (all
    by default) must be aligned, and the last size must be a multiple of `columns`."""
    which = slots if slots is not None else list(range(len(bucket.dtypes)))
    wide = (bucket.table[:, which] % 16 == 0).all(1)
    wide &= bucket.table[:, -1] % columns == 0
    lists = [(aligned, (wide == aligned).nonzero()[:, 0].tolist()) for aligned in (True, False)]
    return [(aligned, tensors) for aligned, tensors in lists if tensors]


class WorkList(NamedTuple):
    """All work of one kind, for one launch."""

    kind: Kind
    aligned: bool
    entries: Tensor  # (tensor, unit)


class Factored(NamedTuple):
    """How the tensors of a bucket of a factored rule are cut."""

    layout: Layout
    work_lists: list[WorkList]  # in order


def factored(
    bucket: Bucket, unit_sizes: UnitSizes, lists: ByAlignment, long_rows: bool = False
) -> Factored:
    """Cuts all tensors. With `long_rows`, the widest tiles can hold rows of those that are
    aligned."""
    elements = max(1, bucket.elements)  # a process may have nothing of a bucket
    layout = Layout(unit_sizes, bucket.compute_dtype.itemsize, bucket.mode, elements)
    in_long_rows = {i for aligned, tensors in lists if aligned and long_rows for i in tensors}
    for index, sizes in enumerate(bucket.table[:, len(bucket.dtypes) + 1 :].tolist()):
        if bucket.kind == "vector":
            layout.add_vector(*sizes)
        else:
            batch, rows, cols = sizes
            layout.add_matrices(batch, rows, cols, index in in_long_rows)
    return Factored(layout, _work_lists(layout, lists))


def _work_lists(layout: Layout, lists: ByAlignment) -> list[WorkList]:
    found = []
    everyone = [(False, sorted(i for _, tensors in lists for i in tensors))]
    for kind in sorted({kind for i in everyone[0][1] for kind in layout.work[i]}):
        for aligned, tensors in everyone if kind.name in WITHOUT_TILES else lists:
            units = [(i, layout.work[i][kind]) for i in tensors if kind in layout.work[i]]
            if units:
                found.append(WorkList(kind, aligned, entries(units)))
    return found


def entries(units: Iterable[tuple[int, int]]) -> Tensor:
    """(tensor, unit) for each unit of work, in order, from pairs (tensor, its number of units)."""
    units = list(units)
    total = sum(count for _, count in units)
    if total > MOST_ENTRIES:
        raise ValueError(f"{total} units of work are more than a launch can have: {MOST_ENTRIES}")
    tensors = torch.tensor([tensor for tensor, _ in units], device="cpu")
    counts = torch.tensor([count for _, count in units], device="cpu")
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    unit = torch.arange(total, device="cpu") - starts
    return torch.stack([tensors.repeat_interleave(counts), unit], 1).to(torch.int32)


def idle_kinds(bucket: Bucket, rows: HostRows | Tensor) -> set[str]:
    """Kinds of work that would do nothing this step. Scalars on a device are not read here: the
    kernels read them and decide."""
    idle: set[str] = set()
    if bucket.rule.factored and isinstance(rows, HostRows):
        names = bucket.rule.scalars
        caps = rows.column(1 + names.index("cap"))
        scales = [scaled > 0.0 for scaled in rows.column(1 + names.index("scaled"))]
        infinite = math.inf if bucket.compute_dtype == torch.float64 else ROUNDS_TO_INFINITY
        if all([abs(cap) >= infinite for cap in caps]):
            idle.add("SUM_U2")
        # With an exchange, rms(p) is known only after it, so the second read cannot sum p^2.
        if True not in scales and (bucket.mode is None or bucket.rms is None):
            idle.add("SQUARES")
        if bucket.rms is None or False not in scales:
            idle.add("STORE_RMS")
    return idle
