"""Carries out the steps of a bucket: what to launch is settled once, by the plan; then a step is
a constant number of launches, on the current stream, and waits for nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from fusedstep.plan import Bucket

from . import blocks, cut, waves
from .elementwise import elementwise
from .rules import UPDATES
from .scalars import CAP, SCALED
from .tables import Tables, current_stream, on_device, processors, upload
from .walk import phase

TYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float64: tl.float64,
}
WAVES = "FUSEDSTEP_TRITON_WAVES"


def wants_waves() -> bool:
    """What the environment variable says."""
    asked = os.environ.get(WAVES, "0")
    if asked not in ("0", "1"):
        raise ValueError(f"{WAVES} should be 0 or 1 but is: {asked!r}")
    return asked == "1"


def run(kernel: Any, programs: int, arguments: dict[str, Any], options: dict[str, Any]) -> None:
    """Every launch goes through here. Arithmetic is exact: nothing is fused."""
    kernel[(programs,)](**arguments, **options, enable_fp_fusion=False)


def options_of(device: torch.device, warps: int, registers: int | None = None) -> dict[str, Any]:
    """How a kernel is compiled; only CUDA can be told how many registers a thread may have."""
    if registers is None or device.type == "xpu" or torch.version.hip is not None:
        return {"num_warps": warps}
    return {"num_warps": warps, "maxnreg": registers}


class Launch(NamedTuple):
    """One launch of a step, but for the arguments that change."""

    kind: cut.Kind | None
    kernel: Any
    programs: int
    arguments: dict[str, Any]
    options: dict[str, Any]  # of the compiler
    counters: Tensor | None = None  # of what is done; zero when a launch begins


class Prepared:
    """What a bucket keeps between steps: its launches and all they read but the tensors."""

    def __init__(self, bucket: Bucket) -> None:
        self.tables = Tables(bucket)
        self.kept: list[Tensor] = []  # work lists and scratch
        self.stream = current_stream(bucket.device)
        make = self._elementwise if bucket.kind == "elementwise" else self._factored
        self.launches = make(bucket, _by_alignment(bucket))

    def _elementwise(self, bucket: Bucket, lists: list[tuple[bool, list[int]]]) -> list[Launch]:
        size = blocks.elementwise(max(dtype.itemsize for dtype in bucket.dtypes))
        counts = bucket.table[:, -1].tolist()
        launches = []
        for aligned, tensors in lists:
            entries = _entries((i, cut.ceil_div(counts[i], size.chunk)) for i in tensors)
            arguments = {
                "chunks": self._upload(entries, bucket),
                "UPDATE": UPDATES[bucket.rule.name],
                "DTYPES": tuple(TYPES[dtype] for dtype in bucket.dtypes),
                "COMPUTE": TYPES[bucket.compute_dtype],
                "SCALARS": len(bucket.rule.scalars),
                "ALIGNED": aligned,
                "BLOCK": size.block,
                "CHUNK": size.chunk,
            }
            options = options_of(bucket.device, size.warps)
            launches.append(Launch(None, elementwise, len(entries), arguments, options))
        return launches

    def _factored(self, bucket: Bucket, lists: list[tuple[bool, list[int]]]) -> list[Launch]:
        sizes = bucket.table[:, len(bucket.dtypes) + 1 :].tolist()
        layout, in_waves = _cut(bucket, sizes, lists)
        runs = waves.cut_into_waves(
            [_gradient_bytes(bucket, i) for i in range(len(sizes))], in_waves
        )
        waves.share_partials(layout, runs)
        wide = self.tables.wide
        shared = {
            "cuts": self._upload(torch.tensor(layout.rows()), bucket),
            "partials": self._scratch(layout.partials, bucket.compute_dtype, bucket),
            "sums": self._scratch(layout.sums, wide, bucket),
            "UPDATE": UPDATES[bucket.rule.name],
            "DTYPES": tuple(TYPES[dtype] for dtype in bucket.dtypes),
            "T": TYPES[bucket.compute_dtype],
            "W": TYPES[wide],
            "VECTOR": bucket.kind == "vector",
        }
        launches = [self._in_waves(bucket, layout, runs, shared)] if runs else []
        taken = set(in_waves)
        rest = [(aligned, [i for i in tensors if i not in taken]) for aligned, tensors in lists]
        return launches + self._in_phases(bucket, layout, rest, shared)

    def _in_phases(
        self,
        bucket: Bucket,
        layout: cut.Layout,
        lists: list[tuple[bool, list[int]]],
        shared: dict[str, Any],
    ) -> list[Launch]:
        launches = []
        everyone = [(False, sorted(i for _, tensors in lists for i in tensors))]
        for kind in sorted({kind for i in everyone[0][1] for kind in layout.work[i]}):
            for aligned, tensors in everyone if kind.name in cut.WITHOUT_TILES else lists:
                units = [(i, layout.work[i][kind]) for i in tensors if kind in layout.work[i]]
                if not units:
                    continue
                entries = _entries(units)
                block = _block(bucket, kind, aligned)
                arguments = {
                    **shared,
                    "entries": self._upload(entries, bucket),
                    "KIND": kind.name,
                    "WIDTH": block.width,
                    "TILE": block.tile,
                    "ALIGNED": aligned,
                }
                options = options_of(bucket.device, block.warps, block.registers)
                launches.append(Launch(kind, phase, len(entries), arguments, options))
        return launches

    def _in_waves(
        self,
        bucket: Bucket,
        layout: cut.Layout,
        runs: list[list[int]],
        shared: dict[str, Any],
    ) -> Launch:
        kinds = sorted({kind for run in runs for i in run for kind in layout.work[i]})
        tiles = [_block(bucket, kind, True) for kind in kinds]
        entries = torch.tensor(waves.entries(layout, runs, kinds), dtype=torch.int32)
        counters = self._scratch(1 + len(layout.cuts) + len(runs), torch.int32, bucket)
        arguments = {
            **shared,
            "entries": self._upload(entries, bucket),
            "count": len(entries),
            "counters": counters,
            "NAMES": tuple(tl.constexpr(kind.name) for kind in kinds),
            "WIDTHS": tuple(block.width for block in tiles),
            "TILES": tuple(block.tile for block in tiles),
            "ALIGNED": True,
        }
        programs = min(len(entries), 2 * processors(bucket.device))
        options = options_of(bucket.device, blocks.WAVE_WARPS)
        return Launch(None, waves.walk, programs, arguments, options, counters)

    def _upload(self, tensor: Tensor, bucket: Bucket) -> Tensor:
        self.kept.append(upload(tensor, bucket.device))
        return self.kept[-1]

    def _scratch(self, count: int, dtype: torch.dtype, bucket: Bucket) -> Tensor:
        self.kept.append(torch.empty(count, dtype=dtype, device=bucket.device))
        return self.kept[-1]

    def follow_stream(self, device: torch.device) -> None:
        """Tells the allocator when the work moves to another stream: memory that a kernel may
        still read there is not given away when the plan is dropped."""
        stream = current_stream(device)
        if stream != self.stream:
            self.stream = stream
            for tensor in (*self.kept, *self.tables.held()):
                tensor.record_stream(stream)

    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.kept, *self.tables.held()))


def prepare(bucket: Bucket) -> None:
    with on_device(bucket.device):
        bucket.backend_data = Prepared(bucket)


def scratch_bytes(bucket: Bucket) -> int:
    prepared: Prepared = bucket.backend_data
    return prepared.nbytes()


def launch(
    bucket: Bucket, scalars: Tensor, inv_grad_scale: Tensor | None, found_inf: Tensor | None
) -> None:
    """Carries out one step of the bucket; kernels write nothing where `found_inf` is not zero."""
    prepared: Prepared = bucket.backend_data
    idle = _idle_kinds(bucket, scalars)
    with on_device(bucket.device):
        prepared.follow_stream(bucket.device)
        current = prepared.tables.current(bucket, scalars, inv_grad_scale, found_inf)
        for kind, kernel, programs, arguments, options, counters in prepared.launches:
            if counters is not None:
                counters.zero_()
            if kind is None or kind.name not in idle:
                run(kernel, programs, {**arguments, **current}, options)


def _idle_kinds(bucket: Bucket, scalars: Tensor) -> set[str]:
    """Kinds of work that would find nothing to do. Scalars on the device are not looked at: then
    every kernel looks for itself."""
    idle: set[str] = set()
    if bucket.rule.factored and scalars.device.type == "cpu":
        if scalars[:, CAP.value].to(bucket.compute_dtype).isinf().all():
            idle.add("ENERGY")
        scaled = scalars[:, SCALED.value] > 0
        if not scaled.any():
            idle.add("SQUARES")
        if bucket.rms is None or scaled.all():
            idle.add("REPORT")
    return idle


def _cut(
    bucket: Bucket, sizes: list[list[int]], lists: list[tuple[bool, list[int]]]
) -> tuple[cut.Layout, list[int]]:
    """The bucket's cuts, and the tensors that go in waves."""
    layout = cut.Layout(bucket.compute_dtype.itemsize)
    in_order = wants_waves()
    may = {i for aligned, tensors in lists if aligned and in_order for i in tensors}
    in_waves = []
    for i, own in enumerate(sizes):
        if bucket.kind == "vector":
            layout.add_vector(*own)
        elif i in may and waves.take(*own):
            layout.add_matrices(*own, least_rows=waves.LEAST_ROWS)
            in_waves.append(i)
        else:
            layout.add_matrices(*own)
    return layout, in_waves


def _block(bucket: Bucket, kind: cut.Kind, aligned: bool) -> blocks.Block:
    momentum = bool(bucket.rule.states)
    return blocks.factored(kind, bucket.compute_dtype.itemsize, aligned, momentum)


def _gradient_bytes(bucket: Bucket, index: int) -> int:
    return bucket.members[index].param.numel() * bucket.dtypes[1].itemsize


def _entries(units: Iterable[tuple[int, int]]) -> Tensor:
    """(tensor, unit) for each unit of work, in order."""
    pairs = [
        torch.stack([torch.full((count,), tensor), torch.arange(count)], 1)
        for tensor, count in units
    ]
    return torch.cat(pairs).to(torch.int32)


def _by_alignment(bucket: Bucket) -> list[tuple[bool, list[int]]]:
    """Tensors of which 16 bytes can be loaded at once, and others: addresses must allow it, and so
    must the sizes, unless a kernel tells full blocks from the tail."""
    wide = (bucket.table[:, : len(bucket.dtypes)] % 16 == 0).all(1)
    if bucket.kind != "elementwise":
        wide &= bucket.table[:, -1] % 16 == 0
    lists = [(aligned, (wide == aligned).nonzero()[:, 0].tolist()) for aligned in (True, False)]
    return [(aligned, tensors) for aligned, tensors in lists if tensors]
