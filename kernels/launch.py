"""Launches the steps of a bucket. The plan prepares the launches once. A step then makes a fixed
number of launches on the current stream and never waits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from fusedstep.gpu import cut, tables, work
from fusedstep.gpu.unit_sizes import ceil_div
from fusedstep.plan.bucket import Bucket
from fusedstep.plan.launcher import Backend
from fusedstep.rules.layout import BENT_INT8, NOISY_BFLOAT16, SLOTS

from . import again, blocks, exchange
from .config import ElementwiseConfig, FactoredConfig, SquaresConfig
from .dispatch import phase
from .elementwise import elementwise
from .rules import update_of
from .squares import gradient_squares

TYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float64: tl.float64,
    # Of rests and codes: `fusedstep.plan.storage`.
    torch.int16: tl.int16,
    torch.int8: tl.int8,
    torch.uint8: tl.uint8,
}


def run(kernel: Any, programs: int, arguments: dict[str, Any], options: dict[str, Any]) -> Any:
    """Makes a launch; the first of every kernel uses this. Returns the compiled kernel. Arithmetic
    is exact: nothing is fused."""
    return kernel[(programs,)](**arguments, **options, enable_fp_fusion=False)


def options_of(device: torch.device, warps: int, registers: int | None = None) -> dict[str, Any]:
    """The compiler options of a kernel. Only CUDA takes a limit on registers."""
    if registers is None or device.type == "xpu" or torch.version.hip is not None:
        return {"num_warps": warps}
    return {"num_warps": warps, "maxnreg": registers}


class KernelLaunch(NamedTuple):
    """One launch of a step, without the arguments that change."""

    kind: cut.Kind | None
    kernel: Any
    programs: int
    arguments: dict[str, Any]
    options: dict[str, Any]  # for the compiler


class TritonLauncher(work.DeviceLauncher):
    """What a bucket keeps between steps: its launches, and what they read besides the tensors."""

    def __init__(self, backend: Backend, bucket: Bucket) -> None:
        with tables.on_device(bucket.device):
            super().__init__(backend, bucket)
            self.noise = None
            if bucket.noise is not None and NOISY_BFLOAT16 in bucket.storage.codes:
                self.noise = self.upload(bucket.noise)
            self.launches = self._launches(bucket)
            self.kept_kernels = again.KeptKernels()

    def _launches(self, bucket: Bucket) -> list[KernelLaunch]:
        make = self._elementwise if bucket.kind == "elementwise" else self._factored
        # An elementwise kernel masks only the tail. The other kernels need aligned rows.
        columns = 1 if bucket.kind == "elementwise" else 16
        return make(bucket, work.by_alignment(bucket, columns))

    def _run(self, current: dict[str, Any], stream: Any, idle: set[str]) -> None:
        kept = self.kept_kernels
        kept.begin(current, stream)
        for index, (kind, kernel, programs, own, options) in enumerate(self.launches):
            if kind is not None and kind.name in idle:
                continue
            if not kept.launch(index):
                arguments = {**own, **current}
                compiled = run(kernel, programs, arguments, options)
                kept.keep(index, kernel, compiled, programs, arguments)

    def _prepare_squares(self, entries: Tensor, elements: Tensor) -> None:
        dtype = self.bucket.dtypes[1]
        block, chunk, warps = blocks.squares(dtype.itemsize)[:3]
        config = SquaresConfig(
            DTYPES=(TYPES[dtype],),
            T=tl.float64 if dtype == torch.float64 else tl.float32,
            W=TYPES[self.tables.scalar_dtype],
            FIELDS=self.bucket.table.shape[1],
            BLOCK=block,
            CHUNK=chunk,
        )
        arguments = {"entries": entries, "elements": elements, "CFG": config}
        options = options_of(self.bucket.device, warps)
        self._squares = KernelLaunch(None, gradient_squares, len(entries), arguments, options)
        self._kept_squares = again.KeptKernels()

    def _run_squares(self, table: Tensor, sums: Tensor, stream: Any) -> None:
        _, kernel, programs, own, options = self._squares
        changing, kept = {"table": table, "sums": sums}, self._kept_squares
        kept.begin(changing, stream)
        if not kept.launch(0):
            arguments = {**own, **changing}
            kept.keep(0, kernel, run(kernel, programs, arguments, options), programs, arguments)

    def _elementwise(self, bucket: Bucket, lists: work.ByAlignment) -> list[KernelLaunch]:
        widest = max(dtype.itemsize for dtype in bucket.dtypes)
        counts = bucket.table[:, -1].tolist()
        launches = []
        for aligned, tensors in lists:
            size = blocks.elementwise(widest, _storage(bucket), aligned)
            entries = work.entries((i, ceil_div(counts[i], size.chunk)) for i in tensors)
            config = ElementwiseConfig(
                DTYPES=tuple(work.codes_of(bucket, TYPES)),
                CODES=bucket.storage.codes,
                COMPANIONS=bucket.storage.companions,
                T=TYPES[bucket.compute_dtype],
                SCALARS=len(bucket.rule.scalars),
                ALIGNED=aligned,
                BLOCK=size.block,
                TAIL=size.tail,
                CHUNK=size.chunk,
            )
            arguments = {
                "chunks": self.upload(entries),
                "noise_rows": self.noise,
                "UPDATE": update_of(bucket.rule, bucket.compute_dtype),
                "CFG": config,
            }
            options = options_of(bucket.device, size.warps, size.registers)
            launches.append(KernelLaunch(None, elementwise, len(entries), arguments, options))
        return launches

    def _factored(self, bucket: Bucket, lists: work.ByAlignment) -> list[KernelLaunch]:
        factored = work.factored(bucket, blocks.UNIT_SIZES, lists)
        layout = factored.layout
        shared = {
            "cuts": self.upload(torch.tensor(layout.rows(), device="cpu")),
            "partials": self.scratch(layout.partials, bucket.compute_dtype),
            "sums": self.scratch(layout.sums, self.tables.scalar_dtype),
            "UPDATE": update_of(bucket.rule, bucket.compute_dtype),
        }
        return [self._phase(bucket, todo, shared) for todo in factored.work_lists]

    def _phase(self, bucket: Bucket, todo: work.WorkList, shared: dict[str, Any]) -> KernelLaunch:
        kind, aligned, entries = todo
        block = _block(bucket, kind, aligned)
        arguments = {
            **shared,
            "entries": self.upload(entries),
            "CFG": self._config(bucket, kind, aligned),
        }
        options = options_of(bucket.device, block.warps, block.registers)
        if kind.name not in cut.EXCHANGED_PHASES:
            is_update = kind.name.endswith("UPDATE")
            arguments["noise_rows"] = self.noise if is_update else None
            return KernelLaunch(kind, phase, len(entries), arguments, options)
        arguments |= {"exchange": self.sums, "of_tensors": self.of_tensors}
        del arguments["UPDATE"]
        return KernelLaunch(kind, exchange.exchange_phase, len(entries), arguments, options)

    def _config(self, bucket: Bucket, kind: cut.Kind, aligned: bool) -> FactoredConfig:
        block = _block(bucket, kind, aligned)
        momentum = SLOTS[bucket.kind].index("momentum")
        return FactoredConfig(
            KIND=kind.name,
            DTYPES=tuple(work.codes_of(bucket, TYPES)),
            CODES=bucket.storage.codes,
            COMPANIONS=bucket.storage.companions,
            T=TYPES[bucket.compute_dtype],
            W=TYPES[self.tables.scalar_dtype],
            VECTOR=bucket.kind == "vector",
            MOMENTUM=momentum if momentum < len(bucket.storage.codes) else 0,
            SHARED=bucket.mode is not None and kind.name in cut.SUMS_OF_P2,
            ALIGNED=aligned,
            WIDTH=block.width,
            HEIGHT=block.height,
        )


def _block(bucket: Bucket, kind: cut.Kind, aligned: bool) -> blocks.Block:
    momentum = bool(bucket.rule.states)
    item_bytes = bucket.compute_dtype.itemsize
    return blocks.factored(kind, item_bytes, aligned, momentum, _storage(bucket))


def _storage(bucket: Bucket) -> blocks.Storage:
    codes, companions = bucket.storage
    return blocks.Storage(
        is_usual=bucket.storage.is_usual,
        is_noisy=NOISY_BFLOAT16 in codes,
        has_blocks=max(codes) >= BENT_INT8,
        is_split=companions[0] > 0,
    )
