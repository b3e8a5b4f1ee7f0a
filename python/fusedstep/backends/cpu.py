"""The C++ backend for CPU tensors: passes buckets to `csrc/cpu`, which cuts and walks them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import native
from ..plan.bucket import Bucket
from ..plan.launcher import Backend, Launcher, StepInputs
from ..plan.rows import HostRows
from ..plan.storage import DTYPE_CODES
from ..rules import RULES

RULE_IDS = {name: index for index, name in enumerate(RULES)}


class CpuBackend(Backend):
    """The walkers of `fusedstep._native`, on torch's own threads."""

    name = "cpu"

    def why_absent(self) -> str:
        return native.reason

    def devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def describe(self) -> str:
        built = native.module
        pool = "1 thread, no OpenMP"
        if built.has_pool():
            pool = f"{torch.get_num_threads()} threads of torch"
        return (
            f"C++, {built.active_level()} (this machine runs {', '.join(built.levels())}), {pool}"
        )

    def prepare(self, bucket: Bucket) -> Launcher:
        return CpuLauncher(self, bucket)


class CpuLauncher(Launcher):
    """A bucket of `fusedstep._native`: its work list and scratch."""

    def __init__(self, backend: Backend, bucket: Bucket) -> None:
        super().__init__(backend, bucket)
        exchange: tuple[Any, ...] = (0, 0, 0, False, False)
        if bucket.mode is not None:
            self._starts = torch.tensor(self.starts, dtype=torch.int64, device="cpu")
            buffers = (self.sums, self._starts, self.of_tensors)
            modes = (bucket.mode == "cols", bucket.mode == "flat")
            exchange = (*(t.data_ptr() for t in buffers), *modes)
        self._work: Any = native.module.Bucket(
            RULE_IDS[bucket.rule.name],
            bucket.compute_dtype == torch.float64,
            bucket.kind == "vector",
            bucket.storage.codes,
            bucket.storage.companions,
            bucket.table.data_ptr(),
            *bucket.table.shape,
            0 if bucket.noise is None else bucket.noise.data_ptr(),
            *exchange,
        )
        self._work.reserve(torch.get_num_threads())
        self._squares: Any = None
        self._square_sums = torch.empty(0, dtype=torch.float64, device="cpu")

    def scratch_bytes(self) -> int:
        own = int(self._work.scratch_bytes(torch.get_num_threads()))
        return own + self._square_sums.nbytes

    def square_sums(self, capturing: bool = False) -> Tensor:
        if self._squares is None:
            table, sizes = self.bucket.table, self.bucket.gradient_sizes()
            dtype = DTYPE_CODES[self.bucket.dtypes[1]]
            self._squares = native.module.Squares(dtype, table.data_ptr(), table.shape[1], sizes)
            self._square_sums = self._square_sums.new_empty(self._squares.pieces())
        sums = self._square_sums.zero_()  # a thread skips tensors without a gradient
        if len(sums):
            self._squares.walk(sums.data_ptr(), torch.get_num_threads())
        return sums

    def launch(self, inputs: StepInputs) -> None:
        self._run(inputs, 0)

    def sum_rows(self, inputs: StepInputs) -> None:
        self._run(inputs, 0)

    def read1(self, inputs: StepInputs) -> None:
        if self.bucket.mode == "flat":
            self.sums.zero_()  # a run touches some rows only
        self._run(inputs, 1)

    def finish(self, inputs: StepInputs) -> None:
        self._run(inputs, 2)

    def update(self, inputs: StepInputs) -> None:
        self._run(inputs, 3)

    def _run(self, inputs: StepInputs, stage: int) -> None:
        rows, inv_grad_scale, found_inf = inputs[:3]
        if found_inf is not None and found_inf.item():
            return
        if isinstance(rows, HostRows):
            address, width = rows.address(), rows.width
        else:
            address, width = rows.data_ptr(), rows.shape[1]
        self._work.launch(
            self.bucket.rows.scalar_row_of.data_ptr(),
            address,
            width,
            1.0 if inv_grad_scale is None else inv_grad_scale.item(),
            torch.get_num_threads(),
            stage,
        )
