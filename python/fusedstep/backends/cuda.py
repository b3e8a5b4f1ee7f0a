"""The CUDA C++ backend: cuts buckets into lists of work on their device, which `csrc/cuda` walks.

The module with the kernels is loaded when somebody first asks for it. Nothing is asked of a driver
before that, so that a process can still be forked.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import native
from ..gpu import tables, waves, work
from ..gpu.cut import UNITS, UnitSizes, Height, ceil_div
from ..plan.bucket import Bucket
from ..plan.launcher import Backend, Launcher
from .cpu import DTYPE_CODES, RULE_IDS

WAVES = "FUSEDSTEP_CUDA_WAVES"
KINDS = ("elementwise", "matrix", "vector")
STEP_ARGS = ("table", "row_of", "scalars", "controls")
UNIT_SIZES = UnitSizes(
    row_widths=(4096, 8192),  # 512 threads, each with 8 columns, or 16
    wide_row_widths=(2048,),  # ... or 4
    chunk_cols=4096,
    flat_width=8192,
    element_widths=(1,),  # a block takes rows of any width
    unit=Height(256, 2048),  # sums of units are two numbers a column: below 2 % of bfloat16
    # All units under way must be in L2.
    wave_unit={item_bytes: Height(16, 65536 // 16 // item_bytes) for item_bytes in (2, 4, 8)},
    wave_cols=(1, 4096),  # as the one kernel for all kinds of work has them
    waves_ahead=2,  # start reading two waves early to hide latency
    update_elements=65536,
    padded=False,
)


class CudaLauncher(work.DeviceLauncher):
    """A bucket of `csrc/cuda`: its tables, and the launches that C++ carries out."""

    def __init__(self, backend: CudaBackend, module: Any, bucket: Bucket, exchanged: bool) -> None:
        super().__init__(backend, bucket, exchanged)
        self.native = module.Bucket(
            RULE_IDS[bucket.rule.name],
            bucket.compute_dtype == torch.float64,
            KINDS.index(bucket.kind),
            work.codes_of(bucket, DTYPE_CODES),
            bucket.table.shape[1],
            1 + len(bucket.rule.scalars),
            bucket.device.index or 0,
        )
        if bucket.kind == "elementwise":
            chunks = [ceil_div(elements, module.CHUNK) for elements in bucket.table[:, -1].tolist()]
            self._add("ELEMENTWISE", 0, False, work.entries(enumerate(chunks)))
        else:
            self._add_factored(bucket)

    def _add_factored(self, bucket: Bucket) -> None:
        lists = [(False, list(range(len(bucket.members))))]
        if bucket.kind == "matrix":
            # Parameter, gradient and momentum are loaded in vectors, moments are not.
            vectors = [k for k in range(len(bucket.dtypes)) if k not in (2, 3)]
            columns = 16 // min(bucket.dtypes[k].itemsize for k in vectors)
            lists = work.by_alignment(bucket, columns, vectors)
        wave_candidates: set[int] = set()
        if waves.wanted(WAVES) and self.native.has_waves():
            wave_candidates.update(i for aligned, tensors in lists if aligned for i in tensors)
        factored = work.factored(bucket, UNIT_SIZES, lists, wave_candidates, self.is_exchanged)
        layout = factored.layout
        self.native.set_scratch(
            self.upload(torch.tensor(layout.rows(), device="cpu")).data_ptr(),
            self.scratch(layout.partials, bucket.compute_dtype).data_ptr(),
            self.scratch(layout.sums, torch.float64).data_ptr(),
        )
        if self.is_exchanged:
            self.native.set_exchange(self.sums.data_ptr(), self.sum_u2.data_ptr())
        if factored.runs:
            number = {kind: UNITS.index(kind.name) for kind in factored.kinds_in_waves()}
            items = waves.entries(layout, factored.runs, number)
            entries = self.upload(torch.tensor(items, dtype=torch.int32, device="cpu"))
            counters = self.scratch(factored.counters(), torch.int32)
            self.native.waves(entries.data_ptr(), len(items), counters.data_ptr(), len(counters))
        for own in factored.work_lists:
            # What was read last is read again first, while it is in L2.
            ordered = own.entries.flip(0) if own.kind.name == "UPDATE" else own.entries
            self._add(own.kind.name, own.kind.width, own.aligned, ordered)

    def _run(self, current: dict[str, Tensor], stream: Any, idle: set[str]) -> None:
        try:
            self.native.launch(
                *(current[name].data_ptr() for name in STEP_ARGS),
                0 if stream is None else stream.cuda_stream,
                sum(1 << UNITS.index(kind) for kind in idle),
            )
        except RuntimeError as error:
            raise RuntimeError(failure(self.backend, self.bucket, error)) from error

    def _add(self, unit: str, width: int, aligned: bool, entries: Tensor) -> None:
        at = self.upload(entries).data_ptr()
        self.native.add(UNITS.index(unit), width, aligned, at, len(entries))


class CudaBackend(Backend):
    """The kernels of `csrc/cuda`. `find` gets the module with them, or a sentence: why there is
    none."""

    def __init__(self, name: str, find: Callable[[], Any], device_types: tuple[str, ...]) -> None:
        self.name = name
        self._find = find
        self._device_types = device_types

    @functools.cached_property
    def module(self) -> Any:
        return self._find()

    def why_absent(self) -> str:
        """Empty if the backend can run on some device here, else the reason."""
        if isinstance(self.module, str):
            return self.module
        reason = f"no GPU: torch finds no {' and no '.join(self._device_types)} device"
        for index in self._indices():
            reason = str(self.module.why_unusable(index))
            if not reason:
                break
        return reason

    def _indices(self) -> list[int]:
        """Of the devices, as torch counts them. The current one comes first: to look at another
        would take memory there."""
        if "cuda" not in self._device_types:
            return list(range(self.module.device_count()))
        if not torch.cuda.is_available():
            return []
        current = torch.cuda.current_device() if torch.cuda.is_initialized() else 0
        return sorted(range(torch.cuda.device_count()), key=lambda index: index != current)

    def devices(self) -> tuple[str, ...]:
        return self._device_types

    def describe(self) -> str:
        """What it was built for and what it runs on, in a line."""
        built = f"C++ for {self.module.built_for()}"
        if "cuda" not in self._device_types:
            return built
        names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
        return f"{built}; on {', '.join(sorted(names))}"

    def prepare(self, bucket: Bucket, exchanged: bool = False) -> Launcher:
        with tables.on_device(bucket.device):
            reason = self.module.why_unusable(bucket.device.index or 0)
            if reason:  # while another device can be used
                raise RuntimeError(f"{self.name} backend: {bucket.device} cannot be used: {reason}")
            try:
                return CudaLauncher(self, self.module, bucket, exchanged)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError) as error:
                raise RuntimeError(failure(self, bucket, error)) from error


def failure(backend: Backend, bucket: Bucket, error: Exception) -> str:
    """What an error of CUDA says, with the bucket it happened to."""
    first = bucket.members[0]
    dtypes = "/".join(str(dtype).removeprefix("torch.") for dtype in bucket.dtypes)
    return (
        f"{backend.name} backend, a bucket on {bucket.device} ({bucket.rule.name}, {bucket.kind}, "
        f"tensors: {len(bucket.members)}, {dtypes}, the first one of shape "
        f"{tuple(first.param.shape)} in group {first.group}): {error}"
    )


def _built() -> Any:
    """The module that was built with the package, or why it cannot be had."""
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
