"""What a bucket keeps between steps, and how its tensors become lists of work on a device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..plan.bucket import Bucket
from ..plan.launcher import Backend, Launcher, StepInputs
from . import tables, waves
from .cut import WITHOUT_TILES, Grain, Kind, Layout

MOST_ENTRIES = 2**31 - 1  # of a launch: programs are numbered in 32 bits, and so are units
# Tensors by whether they are aligned.
Lists = list[tuple[bool, list[int]]]


class DeviceLauncher(Launcher):
    """What all launches of a bucket read but its tensors. Backends add the launches."""

    def __init__(self, backend: Backend, bucket: Bucket, exchanged: bool) -> None:
        super().__init__(backend, bucket)
        if exchanged and bucket.rule.factored:
            raise RuntimeError(
                f"the {backend.name} backend cannot add up sums over processes between the phases "
                f"of {bucket.rule.name}: step whole parameters with it"
            )
        self.device = bucket.device
        self.tables = tables.Tables(bucket)
        self.kept: list[Tensor] = []  # work lists and scratch
        self.stream = tables.current_stream(bucket.device)

    def upload(self, tensor: Tensor) -> Tensor:
        self.kept.append(tables.upload(tensor, self.device))
        return self.kept[-1]

    def scratch(self, count: int, dtype: torch.dtype) -> Tensor:
        self.kept.append(torch.empty(count, dtype=dtype, device=self.device))
        return self.kept[-1]

    def follow_stream(self) -> Any:
        """Tells the allocator when the work moves to another stream: memory that a kernel may
        still read there is not given away when the plan is dropped. Returns the stream."""
        stream = tables.current_stream(self.device)
        if stream != self.stream:
            self.stream = stream
            for tensor in (*self.kept, *self.tables.held()):
                tensor.record_stream(stream)
        return stream

    def current(self, inputs: StepInputs) -> dict[str, Tensor]:
        """The arguments that change from step to step."""
        return self.tables.current(self.bucket, *inputs)

    def scratch_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.kept, *self.tables.held()))


def by_alignment(bucket: Bucket, columns: int = 1, slots: list[int] | None = None) -> Lists:
    """Tensors of which 16 bytes can be loaded at once, and others: the addresses of some slots, or
    of all, must allow it, and the last of the sizes must be a multiple of `columns`."""
    which = slots if slots is not None else list(range(len(bucket.dtypes)))
    wide = (bucket.table[:, which] % 16 == 0).all(1)
    wide &= bucket.table[:, -1] % columns == 0
    lists = [(aligned, (wide == aligned).nonzero()[:, 0].tolist()) for aligned in (True, False)]
    return [(aligned, tensors) for aligned, tensors in lists if tensors]


class Phase(NamedTuple):
    """Work of one kind, for one launch."""

    kind: Kind
    aligned: bool
    entries: Tensor  # (tensor, unit)


class Factored(NamedTuple):
    """How the tensors of a bucket of a factored rule are cut."""

    layout: Layout
    runs: list[list[int]]  # of tensors that go in waves
    phases: list[Phase]  # of the others, in order

    def kinds_in_waves(self) -> list[Kind]:
        return sorted({kind for run in self.runs for i in run for kind in self.layout.work[i]})

    def counters(self) -> int:
        """How many the waves need: tickets, then what was done of each tensor, and of each wave."""
        return 1 + len(self.layout.cuts) + len(self.runs)


def factored(bucket: Bucket, grain: Grain, lists: Lists, may: set[int]) -> Factored:
    """`may` are the tensors that can go in waves, if their shape is right for it."""
    layout = Layout(grain, bucket.compute_dtype.itemsize)
    in_waves: list[int] = []
    item_bytes = bucket.dtypes[1].itemsize
    for i, sizes in enumerate(bucket.table[:, len(bucket.dtypes) + 1 :].tolist()):
        if bucket.kind == "vector":
            layout.add_vector(*sizes)
            continue
        batch, rows, cols = sizes
        goes = i in may and waves.take(grain, item_bytes, batch, rows, cols)
        layout.add_matrices(batch, rows, cols, grain.wave_unit[item_bytes] if goes else None)
        in_waves += [i] if goes else []
    gradient_bytes = [member.param.numel() * item_bytes for member in bucket.members]
    runs = waves.cut_into_waves(gradient_bytes, in_waves)
    waves.share_partials(layout, runs)
    taken = set(in_waves)
    rest = [(aligned, [i for i in tensors if i not in taken]) for aligned, tensors in lists]
    return Factored(layout, runs, _phases(layout, rest))


def _phases(layout: Layout, lists: Lists) -> list[Phase]:
    found = []
    everyone = [(False, sorted(i for _, tensors in lists for i in tensors))]
    for kind in sorted({kind for i in everyone[0][1] for kind in layout.work[i]}):
        for aligned, tensors in everyone if kind.name in WITHOUT_TILES else lists:
            units = [(i, layout.work[i][kind]) for i in tensors if kind in layout.work[i]]
            if units:
                found.append(Phase(kind, aligned, entries(units)))
    return found


def entries(units: Iterable[tuple[int, int]]) -> Tensor:
    """(tensor, unit) for each unit of work, in order, from how many a tensor has."""
    units = list(units)
    total = sum(count for _, count in units)
    if total > MOST_ENTRIES:
        raise ValueError(f"{total} units of work are more than a launch can have: {MOST_ENTRIES}")
    whose = torch.tensor([tensor for tensor, _ in units], device="cpu")
    counts = torch.tensor([count for _, count in units], device="cpu")
    own = torch.arange(total, device="cpu") - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return torch.stack([whose.repeat_interleave(counts), own], 1).to(torch.int32)


def idle_kinds(bucket: Bucket, scalars: Tensor) -> set[str]:
    """Kinds of work that would find nothing to do. Scalars on the device are not looked at: then
    every kernel looks for itself."""
    idle: set[str] = set()
    if bucket.rule.factored and scalars.device.type == "cpu":
        names = ("sign", *bucket.rule.scalars)
        if scalars[:, names.index("cap")].to(bucket.compute_dtype).isinf().all():
            idle.add("ENERGY")
        scaled = scalars[:, names.index("scaled")] > 0
        if not scaled.any():
            idle.add("SQUARES")
        if bucket.rms is None or scaled.all():
            idle.add("REPORT")
    return idle
