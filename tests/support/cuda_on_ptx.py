"""The CUDA backend without a GPU. Its host code is built for the CUDA simulator. Launches run on
the simulator, or as nvcc's PTX on the executor."""

from __future__ import annotations

import ctypes
import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor

from fusedstep import backends
from fusedstep.backends import cuda
from fusedstep.gpu import work
from tests import simcuda
from tests.ptxrun import Kernel, Memory, run
from tests.ptxrun.mangled import parse
from tests.ptxrun.module import Module
from tests.ptxrun.nvcc import module_of, texts
from tests.support.cases import assert_same
from tests.support.cuda_compiled import label
from tests.support.problems import Problem
from tests.support.rule_cases import is_factored

CSRC = Path(__file__).parents[2] / "csrc"
SOURCES = sorted((CSRC / "cuda").glob("*.cu"))
NAME = "_simcuda"

# It gets a kernel's label, and its arguments by their names in KernelArgs, and may change both.
Plant = Callable[[str, dict[str, Any]], None]
Edit = Callable[[str, str], str]


def fields_of_args() -> list[tuple[str, Any]]:
    """The members of `struct KernelArgs`, read from its header, so that the two cannot differ."""
    text = (CSRC / "cuda" / "kernel_args.h").read_text() + (CSRC / "plan.h").read_text()
    body = re.sub(r"//[^\n]*", "", text[text.index("struct KernelArgs {") :].split("};")[0])
    lengths = dict(re.findall(r"constexpr int (\w+) = (\d+);", text))
    found: list[tuple[str, Any]] = []
    for line in body.split("{")[1].split(";")[:-1]:
        kind, names = re.match(r"\s*(?:const )?(\w+\*?) (.*)", line, re.S).groups()
        for name in names.split(","):
            whole = {
                "int64_t": ctypes.c_int64,
                "int32_t": ctypes.c_int32,
                "double": ctypes.c_double,
            }
            own = ctypes.c_void_p if kind.endswith("*") else whole[kind]
            name, _, length = name.strip().rstrip("]").partition("[")
            found.append((name, own * int(lengths[length]) if length else own))
    return found


class KernelArgs(ctypes.Structure):
    """`fusedstep::cuda::KernelArgs`."""

    _fields_ = fields_of_args()


ADDRESSES = [name for name, kind in KernelArgs._fields_ if kind is ctypes.c_void_p]


def sources() -> bytes:
    return texts(CSRC / "plan.h", (CSRC,))


@functools.cache
def sources_at_first() -> bytes:
    return sources()


@functools.cache
def simulated() -> tuple[Any, Any]:
    """The backend's module on the simulator, and the simulator's settings."""
    sources_at_first()
    library = simcuda.build(
        NAME,
        [CSRC / "cuda" / "bindings.cpp", *SOURCES],
        include=[CSRC],
        defines=[f"FUSEDSTEP_CUDA_MODULE={NAME}"],
    )
    return simcuda.load(library, NAME)


def fill_with_nan(launcher: work.DeviceLauncher) -> None:
    """Fills what a launcher keeps between steps, so that a missing sum shows."""
    for tensor in launcher.kept:
        if launcher.is_exchanged and tensor is launcher.of_tensors:
            launcher.sum_u2.fill_(math.nan)  # its other numbers are sizes
        elif tensor.is_floating_point():
            tensor.fill_(math.nan)


@contextmanager
def on_simulator(hook: Any = None) -> Iterator[Any]:
    """Lets `backend="simcuda"` take CPU tensors. Yields the simulator's settings."""
    module, settings = simulated()
    backend = cuda.CudaBackend("simcuda", lambda: module, ("cpu",))
    settings.reset()
    settings.hook(hook)
    try:
        with mock.patch.dict(backends.BACKENDS, {"simcuda": backend}):
            yield settings
    finally:
        settings.reset()


@functools.cache
def modules(arch: int) -> list[Module]:
    assert sources() == sources_at_first(), "csrc changed while tests ran: run them again"
    return [module_of(source, arch, (CSRC,)) for source in SOURCES]


@functools.cache
def kernel(arch: int, symbol: str, edit: Edit | None = None) -> Kernel:
    """A kernel as nvcc compiled it. `edit` may change its text to plant a fault."""
    (module,) = (one for one in modules(arch) if symbol in one.functions)
    if edit is None:
        return Kernel(module, symbol)
    text = module.alone(symbol)
    edited = edit(label(parse(symbol)), text)
    return kernel(arch, symbol) if edited == text else Kernel(edited, symbol)


class Launches:
    """The launches in a block of `on_ptx`."""

    def __init__(self) -> None:
        self.counted: Counter[str] = Counter()  # as ptxrun.run returns it, for all kernels
        self.of_kernel: dict[str, Counter[str]] = {}

    def add(self, name: str, counted: Counter[str]) -> None:
        self.counted.update(counted)
        self.of_kernel.setdefault(name, Counter()).update(counted)


@contextmanager
def on_ptx(
    arch: int = 90,
    schedule: int | None = None,
    plant: Plant | None = None,
    edit: Edit | None = None,
) -> Iterator[Launches]:
    """Executes kernels as PTX. They can access the bucket's tensors and what their arguments point
    to, nothing else. Scratch starts as nan in every step."""
    launches, under_way = Launches(), {}
    real_current, real_run = work.DeviceLauncher.current, cuda.CudaLauncher._run
    real_norm = cuda.CudaLauncher._run_squares

    def current(self: Any, inputs: Any) -> dict[str, Tensor]:
        """Called once a step, before its first stage."""
        fill_with_nan(self)
        return real_current(self, inputs)

    def run_launches(self: Any, current: dict[str, Tensor], stream: Any, idle: set[str]) -> None:
        """Called for each stage: between two of them, other buckets are launched."""
        under_way.update(launcher=self, tensors=current)
        real_run(self, current, stream, idle)

    def run_norm(self: Any, table: Tensor, sums: Tensor, stream: Any) -> None:
        under_way.update(launcher=self, tensors={"table": table})
        real_norm(self, table, sums.fill_(math.nan), stream)

    def hook(symbol: str, grid: Any, block: Any, shared: int, argument: bytes, _: int) -> None:
        name, args = label(parse(symbol)), KernelArgs.from_buffer_copy(argument)
        arguments = named(args, under_way["launcher"], under_way["tensors"])
        if plant:
            plant(name, arguments)
            for field in ADDRESSES:
                setattr(args, field, arguments[field].data_ptr() if field in arguments else None)
        memory = of_bucket(under_way["launcher"].bucket)
        for field, tensor in arguments.items():
            memory.add(tensor, field)
        launches.add(
            name, run(kernel(arch, symbol, edit), grid, block, [args], memory, shared, schedule)
        )

    with (
        on_simulator(hook),
        mock.patch.object(work.DeviceLauncher, "current", current),
        mock.patch.object(cuda.CudaLauncher, "_run", run_launches),
        mock.patch.object(cuda.CudaLauncher, "_run_squares", run_norm),
    ):
        yield launches


def named(args: KernelArgs, launcher: Any, current: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that a kernel's arguments point to."""
    tensors = [one for one in current.values() if isinstance(one, Tensor)]  # or scalars by value
    known = {tensor.data_ptr(): tensor for tensor in (*launcher.kept, *tensors) if len(tensor)}
    addresses = {name: getattr(args, name) for name in ADDRESSES}
    return {name: known[address] for name, address in addresses.items() if address}


def of_bucket(bucket: Any) -> Memory:
    memory = Memory()
    for index, member in enumerate(bucket.members):
        names = ("param", "grad", *member.state_keys)
        for name, tensor in zip(names, bucket.tensors(index), strict=True):
            memory.add(tensor.detach(), f"{name} {index}")
    if bucket.rms is not None:
        memory.add(bucket.rms, "rms")
    return memory


def check(problem: Problem, **how: Any) -> Launches:
    """Asserts that PTX gives the simulator's bits, and the reference's or results within the bound
    for factored rules."""
    with on_ptx(**how) as launches:
        found = problem.run("simcuda")
    with on_simulator():
        assert_same(*found, *problem.run("simcuda"))
    reference = problem.run("reference")
    if is_factored(problem.case):
        problem.assert_near(found, reference, problem.run("reference", exact=True))
    else:
        assert_same(*found, *reference)
    return launches
