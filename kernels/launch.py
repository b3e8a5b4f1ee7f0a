"""Carries out the steps of a bucket: what to launch is settled once, by the plan; then a step is
a constant number of launches, on the current stream, and waits for nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from fusedstep.plan import Bucket
from fusedstep.rules.adafactor import SCALARS

from . import blocks, cut
from .elementwise import elementwise
from .rules import UPDATES
from .tables import Tables, on_device, upload
from .walk import phase

TYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float64: tl.float64,
}
CAP, SCALED = (1 + SCALARS.index(name) for name in ("cap", "scaled"))


def run(kernel: Any, programs: int, arguments: dict[str, Any], warps: int) -> None:
    """Every launch goes through here. Arithmetic is exact: nothing is fused."""
    kernel[(programs,)](**arguments, num_warps=warps, enable_fp_fusion=False)


class Launch(NamedTuple):
    """One launch of a step, but for the arguments that change."""

    kind: cut.Kind | None
    kernel: Any
    programs: int
    arguments: dict[str, Any]
    warps: int


class Prepared:
    """What a bucket keeps between steps: its launches and all they read but the tensors."""

    def __init__(self, bucket: Bucket) -> None:
        self.tables = Tables(bucket)
        self.nbytes = 0  # of work lists and scratch
        make = self._elementwise if bucket.kind == "elementwise" else self._factored
        self.launches = make(bucket, _by_alignment(bucket))
        # Phases in order; in a phase, and for elementwise rules, the order does not matter.
        self.launches.sort(key=lambda launch: launch.kind or cut.kind("FINISH"))

    def _elementwise(self, bucket: Bucket, lists: list[tuple[bool, list[int]]]) -> list[Launch]:
        size = blocks.elementwise(max(dtype.itemsize for dtype in bucket.dtypes))
        counts = bucket.table[:, -1].tolist()
        launches = []
        for aligned, tensors in lists:
            entries = _entries((i, cut.ceil_div(counts[i], size.chunk)) for i in tensors)
            arguments = {
                "chunks": self._keep(entries, bucket),
                "UPDATE": UPDATES[bucket.rule.name],
                "DTYPES": tuple(TYPES[dtype] for dtype in bucket.dtypes),
                "COMPUTE": TYPES[bucket.compute_dtype],
                "SCALARS": len(bucket.rule.scalars),
                "ALIGNED": aligned,
                "BLOCK": size.block,
                "CHUNK": size.chunk,
            }
            launches.append(Launch(None, elementwise, len(entries), arguments, size.warps))
        return launches

    def _factored(self, bucket: Bucket, lists: list[tuple[bool, list[int]]]) -> list[Launch]:
        layout = cut.Layout(bucket.compute_dtype.itemsize)
        sizes = bucket.table[:, len(bucket.dtypes) + 1 :].tolist()
        for own in sizes:
            (layout.add_vector if bucket.kind == "vector" else layout.add_matrices)(*own)
        device = bucket.device
        wide = self.tables.wide
        self.sums = torch.empty(layout.sums, dtype=wide, device=device)
        self.partials = torch.empty(layout.partials, dtype=bucket.compute_dtype, device=device)
        self.nbytes += self.sums.nbytes + self.partials.nbytes
        shared = {
            "cuts": self._keep(torch.tensor(layout.rows()), bucket),
            "partials": self.partials,
            "sums": self.sums,
            "UPDATE": UPDATES[bucket.rule.name],
            "DTYPES": tuple(TYPES[dtype] for dtype in bucket.dtypes),
            "T": TYPES[bucket.compute_dtype],
            "W": TYPES[wide],
            "VECTOR": bucket.kind == "vector",
        }
        launches = []
        for aligned, tensors in lists:
            kinds = sorted({kind for i in tensors for kind in layout.work[i]})
            for kind in kinds:
                units = ((i, layout.work[i].get(kind, 0)) for i in tensors)
                entries = _entries(units)
                block = blocks.factored(kind, bucket.compute_dtype.itemsize, aligned)
                arguments = {
                    **shared,
                    "entries": self._keep(entries, bucket),
                    "KIND": kind.name,
                    "WIDTH": block.width,
                    "TILE": block.tile,
                    "ALIGNED": aligned,
                }
                launches.append(Launch(kind, phase, len(entries), arguments, block.warps))
        return launches

    def _keep(self, tensor: Tensor, bucket: Bucket) -> Tensor:
        self.nbytes += tensor.nbytes
        return upload(tensor, bucket.device)


def prepare(bucket: Bucket) -> None:
    with on_device(bucket.device):
        bucket.backend_data = Prepared(bucket)


def scratch_bytes(bucket: Bucket) -> int:
    prepared: Prepared = bucket.backend_data
    return prepared.nbytes + prepared.tables.nbytes()


def launch(
    bucket: Bucket, scalars: Tensor, inv_grad_scale: Tensor | None, found_inf: Tensor | None
) -> None:
    """Carries out one step of the bucket; kernels write nothing where `found_inf` is not zero."""
    prepared: Prepared = bucket.backend_data
    idle = _idle_kinds(bucket, scalars)
    with on_device(bucket.device):
        current = prepared.tables.current(bucket, scalars, inv_grad_scale, found_inf)
        for kind, kernel, programs, arguments, warps in prepared.launches:
            if kind is None or kind.name not in idle:
                run(kernel, programs, {**arguments, **current}, warps)


def _idle_kinds(bucket: Bucket, scalars: Tensor) -> set[str]:
    """Kinds of work that would find nothing to do. Scalars on the device are not looked at: then
    every kernel looks for itself."""
    idle: set[str] = set()
    if bucket.rule.factored and scalars.device.type == "cpu":
        if scalars[:, CAP].isinf().all():
            idle.add("ENERGY")
        scaled = scalars[:, SCALED] > 0
        if not scaled.any():
            idle.add("SQUARES")
        if bucket.rms is None or scaled.all():
            idle.add("REPORT")
    return idle


def _entries(units: Iterable[tuple[int, int]]) -> Tensor:
    """(tensor, unit) for each unit of work, in order."""
    pairs = [
        torch.stack([torch.full((count,), tensor), torch.arange(count)], 1)
        for tensor, count in units
        if count
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
