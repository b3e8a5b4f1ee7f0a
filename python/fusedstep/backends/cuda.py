"""The CUDA C++ backend: cuts buckets into work lists on their device, which `csrc/cuda` walks.

The module with the kernels is loaded on first use. Before that no call reaches the driver, so a
process can still be forked.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import native
from ..gpu import tables, work
from ..gpu.cut import UNITS
from ..gpu.unit_sizes import Height, UnitSizes, ceil_div
from ..plan.bucket import Bucket
from ..plan.launcher import Backend, Launcher
from ..plan.rows import HostRows
from ..rules.layout import FLOAT32, ITEM_BYTES
from .cpu import RULE_IDS
from .reference import flat_launcher

KINDS = ("elementwise", "matrix", "vector")
BIT_OF = {kind: 1 << index for index, kind in enumerate(UNITS)}
UNIT_SIZES = UnitSizes(
    row_widths=(4096, 8192),  # 512 threads, with 8 or 16 columns each
    long_row_widths=(12288, 16384),  # with 24 or 32
    wide_row_widths=(2048,),  # with 4
    chunk_cols=4096,
    flat_width=8192,
    column_widths=(256, 128, 64),
    element_widths=(1,),  # a block takes rows of any width
    unit=Height(256, 2048),  # a unit leaves two sums per column: below 2 % of bfloat16 traffic
    programs=dict.fromkeys(
        (2048, 4096, 8192, 12288, 16384), 128
    ),  # one on most of an H100's multiprocessors
    least_elements=16384,
    update_elements=131072,
    update_programs=256,
    least_update_elements=8192,
    padded=False,
)


class CudaLauncher(work.DeviceLauncher):
    """A bucket of `csrc/cuda`: its tables and launches."""

    def __init__(self, backend: CudaBackend, module: Any, bucket: Bucket) -> None:
        super().__init__(backend, bucket, module.VALUES)
        self.native = module.Bucket(
            RULE_IDS[bucket.rule.name],
            bucket.compute_dtype == torch.float64,
            KINDS.index(bucket.kind),
            list(bucket.storage.codes),
            list(bucket.storage.companions),
            bucket.table.shape[1],
            2 + len(bucket.rule.scalars),
            bucket.device.index or 0,
            0 if bucket.noise is None else self.upload(bucket.noise).data_ptr(),
        )
        if bucket.kind == "elementwise":
            chunks = [ceil_div(elements, module.CHUNK) for elements in bucket.table[:, -1].tolist()]
            self._add("ELEMENTWISE", 0, False, work.entries(enumerate(chunks)))
        else:
            self._add_factored(bucket)

    def _add_factored(self, bucket: Bucket) -> None:
        lists, long_rows = [(False, list(range(len(bucket.members))))], False
        if bucket.kind == "matrix":
            # Kernels load parameter, gradient and momentum in vectors, but not the moments. Rows
            # whose momentum has 8 bits are whole blocks.
            vectors = [k for k in range(len(bucket.dtypes)) if k not in (2, 3)]
            codes = [code for k, code in enumerate(bucket.storage.codes) if k not in (2, 3)]
            columns = 16 // min(ITEM_BYTES[code] for code in codes)
            lists = work.by_alignment(bucket, columns, vectors)
            # The widest tiles have kernels for 16 bits only. A wider number has no room on chip,
            # beside the sums down its column.
            _, gradient, moments = bucket.storage.codes[:3]
            long_rows = ITEM_BYTES[gradient] == 2 and moments in (FLOAT32, gradient)
        factored = work.factored(bucket, UNIT_SIZES, lists, long_rows)
        layout = factored.layout
        self.native.set_scratch(
            self.upload(torch.tensor(layout.rows(), device="cpu")).data_ptr(),
            self.scratch(layout.partials, bucket.compute_dtype).data_ptr(),
            self.scratch(layout.sums, torch.float64).data_ptr(),
        )
        if self.is_exchanged:
            self.native.set_exchange(self.sums.data_ptr(), self.of_tensors.data_ptr())
        for listed in factored.work_lists:
            # The update starts with the rows that were read last: they are still in L2.
            ordered = listed.entries.flip(0) if listed.kind.name == "UPDATE" else listed.entries
            self._add(listed.kind.name, listed.kind.width, listed.aligned, ordered)

    def _run(self, current: dict[str, Any], stream: int | None, idle: set[str]) -> None:
        scalars = current["scalars"]
        if isinstance(scalars, HostRows):
            address, by_value = scalars.address(), len(scalars.numbers)
        else:
            address, by_value = scalars.data_ptr(), 0
        try:
            self.native.launch(
                current["table"].data_ptr(),
                current["scalar_row_of"].data_ptr(),
                address,
                current["controls"].data_ptr(),
                stream or 0,
                sum([BIT_OF[kind] for kind in idle]),
                by_value,
            )
        except RuntimeError as error:
            raise RuntimeError(failure(self.backend, self.bucket, error)) from error

    def _prepare_squares(self, entries: Tensor, elements: Tensor) -> None:
        self.native.set_squares(entries.data_ptr(), len(entries), elements.data_ptr())

    def _run_squares(self, table: Tensor, sums: Tensor, stream: Any) -> None:
        try:
            self.native.launch_squares(table.data_ptr(), sums.data_ptr(), stream or 0)
        except RuntimeError as error:
            raise RuntimeError(failure(self.backend, self.bucket, error)) from error

    def _add(self, unit: str, width: int, aligned: bool, entries: Tensor) -> None:
        at = self.upload(entries).data_ptr()
        self.native.add(UNITS.index(unit), width, aligned, at, len(entries))


class CudaBackend(Backend):
    """The kernels of `csrc/cuda`. `find` returns their module, or a string that says why there is
    none."""

    def __init__(self, name: str, find: Callable[[], Any], device_types: tuple[str, ...]) -> None:
        self.name = name
        self._find = find
        self._device_types = device_types

    @functools.cached_property
    def module(self) -> Any:
        return self._find()

    def why_absent(self) -> str:
        """Empty if the backend can run on any device here, else the reason."""
        if isinstance(self.module, str):
            return self.module
        reason = f"no GPU: torch finds no {' and no '.join(self._device_types)} device"
        for index in self._indices():
            reason = str(self.module.why_unusable(index))
            if not reason:
                break
        return reason

    def _indices(self) -> list[int]:
        """torch's indices of the devices. The current one comes first: a look at another device
        would allocate memory there."""
        if "cuda" not in self._device_types:
            return list(range(self.module.device_count()))
        if not torch.cuda.is_available():
            return []
        current = torch.cuda.current_device() if torch.cuda.is_initialized() else 0
        return sorted(range(torch.cuda.device_count()), key=lambda index: index != current)

    def devices(self) -> tuple[str, ...]:
        return self._device_types

    def describe(self) -> str:
        """One line: what it was built for and what it runs on."""
        built = f"C++ for {self.module.built_for()}"
        if "cuda" not in self._device_types:
            return built
        names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
        return f"{built}; on {', '.join(sorted(names))}"

    def prepare(self, bucket: Bucket) -> Launcher:
        if bucket.mode == "flat":
            return flat_launcher(self, bucket)
        with tables.on_device(bucket.device):
            reason = self.module.why_unusable(bucket.device.index or 0)
            if reason:  # `why_absent` found that another device is usable
                raise RuntimeError(f"{self.name} backend: {bucket.device} cannot be used: {reason}")
            try:
                return CudaLauncher(self, self.module, bucket)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError) as error:
                raise RuntimeError(failure(self, bucket, error)) from error


def failure(backend: Backend, bucket: Bucket, error: Exception) -> str:
    """A CUDA error's message, with the bucket that failed."""
    first = bucket.members[0]
    dtypes = "/".join(str(dtype).removeprefix("torch.") for dtype in bucket.dtypes)
    return (
        f"{backend.name} backend, a bucket on {bucket.device} ({bucket.rule.name}, {bucket.kind}, "
        f"tensors: {len(bucket.members)}, {dtypes}, the first one of shape "
        f"{tuple(first.param.shape)} in group {first.group}): {error}"
    )


def _built() -> Any:
    """The module that was built with the package, or the reason why there is none."""
    if torch.version.hip is not None:
        return "torch is built for ROCm: the CUDA kernels are for NVIDIA's GPUs"
    try:
        built = importlib.import_module("fusedstep._cuda")
        return native.why_stale(built) or built
    except ModuleNotFoundError:
        return (
            "the CUDA module is not built: no nvcc was found when the package was installed, "
            "FUSEDSTEP_CUDA was OFF, or the build failed"
        )
    except ImportError as error:
        return f"the CUDA module does not load: {error}"


CUDA = CudaBackend("cuda", _built, ("cuda",))
