"""Triton's kernels: records launches without a GPU, compiles them, and reads the machine code."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any
from unittest import mock

import torch

from fusedstep.backends.triton import TritonBackend
from fusedstep.gpu import work
from fusedstep.gpu.cut import WITHOUT_TILES
from fusedstep.rules.layout import NOISY_BFLOAT16
from tests.support.exchange import FakeProcesses, share
from tests.support.machine_code import NO_LOOP, Loop, hot_loop, report
from tests.support.rule_cases import CASE_OF

NAMES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float64: "fp64",
    torch.int32: "i32",
    torch.int64: "i64",
}
OF_BYTES = ("int8", "uint8", "int16")  # types of codes and rests
# Every width of cut.py, with one block of rows and several, in one chunk and several.
SHAPES = [(300, cols) for cols in (16, 208, 512, 1008, 2032, 4080, 8176, 8208)]
SHAPES += [(3, 2064), (64,), (4, 3, 16)]
# Every width of tiles of the kinds of work that load parameters, and rows of whole blocks.
STORED_SHAPES = [(300, 16), (300, 256), (300, 1024), (64,), (4, 3, 16)]


@dataclass(frozen=True)
class Launch:
    """A kernel with everything that it is specialized on. Functions and types are given by name."""

    kernel: str  # module:name
    arguments: tuple[tuple[str, str], ...]  # and their types
    constants: tuple[tuple[str, Any], ...]
    options: tuple[tuple[str, Any], ...]

    def __getitem__(self, name: str) -> Any:
        """A constant, or a field of the kernel's configuration."""
        constants = dict(self.constants)
        return constants.get(name, getattr(constants.get("CFG"), name, None))

    @property
    def kind(self) -> str:
        """A kind of work, or an elementwise rule, or a kernel."""
        name = self.kernel.partition(":")[2]
        return self["KIND"] or (self.rule if name == "elementwise" else name) or name

    @property
    def is_aligned(self) -> bool:
        """Whether it loads 16 bytes at once. Kernels of the norm look at each address."""
        return self.kind == "gradient_squares" or bool(self["ALIGNED"])

    @property
    def rule(self) -> str | None:
        """The rule of a kernel that updates. One text may be bound twice, by dtype."""
        update = self["UPDATE"]
        return update and update.removesuffix(" in float64")

    @property
    def is_usual(self) -> bool:
        """Whether all slots are stored in the dtypes of their tensors."""
        return max(self["CODES"] or (0,)) < NOISY_BFLOAT16

    @property
    def warps(self) -> int:
        return dict(self.options)["num_warps"]

    def __str__(self) -> str:
        dtypes = "/".join(self["DTYPES"] or ())
        aligned = "aligned" if self["ALIGNED"] else "not aligned"
        return f"{self.kind} {self['WIDTH'] or ''} {self['UPDATE']} {dtypes} {aligned}"


@dataclass(frozen=True)
class Facts:
    """Facts about a compiled kernel. Accesses are counted for one thread, by size in bytes."""

    registers: int
    spilled: int  # bytes of local memory; on AMD, spilled vector registers too
    scalar_spills: int  # on AMD: spills of scalar registers into vector registers
    loads: dict[int, int]
    stores: dict[int, int]
    inexact: tuple[str, ...]
    float_atomics: tuple[str, ...]
    loop: Loop = NO_LOOP  # of launches with `counts_loop`


def recorded_launches(
    rule: str,
    dtypes: Sequence[torch.dtype],
    aligned: bool,
    role: str | None = None,
    shapes: Iterable[tuple[int, ...]] = SHAPES,
    clips: bool = False,
    options: Sequence[tuple[str, Any]] = (),
) -> list[Launch]:
    """The launches of a step with this rule. `dtypes` are those of parameter, gradient and states;
    the last one is repeated. With a `role`, tensors are shared in it. With `clips`, only those that
    make the norm of the gradients. With `options` for low precision, these give the dtypes of the
    states."""
    from triton.runtime.jit import JITFunction

    params = []
    for shape in shapes:
        # An odd number of columns, at an address that is not a multiple of 16.
        shape = shape if aligned or options else (*shape[:-1], shape[-1] - 1)
        param, grad = (_empty(shape, dtype, aligned) for dtype in dtypes[:2])
        params.append(torch.nn.Parameter(param))
        params[-1].grad_dtype = None  # any
        params[-1].grad = grad
    found: dict[Launch, None] = {}

    def record(kernel: Any, grid: Any, warmup: bool, **arguments: Any) -> None:
        found[_launch(kernel, arguments)] = None

    with (
        mock.patch.object(TritonBackend, "why_absent", return_value=""),
        mock.patch.object(TritonBackend, "devices", return_value=("cpu",)),
        # As when scalars are on the device: the host leaves out no kind of work.
        mock.patch.object(work, "idle_kinds", return_value=set()),
        mock.patch.object(JITFunction, "run", record),
    ):
        optimizer = CASE_OF[rule].make(params, backend="triton", **dict(options))
        if role is not None:
            share(optimizer, FakeProcesses(), role)
        optimizer.step()
        for member in optimizer._plan.members:
            for k, key in enumerate(() if options else member.state_keys):
                dtype = dtypes[min(2 + k, len(dtypes) - 1)]
                member.state[key] = member.state[key].to(dtype)
        optimizer._plan = None
        found.clear()
        if clips:
            optimizer.max_grad_norm = 1.0
        optimizer.step()
    return [launch for launch in found if not clips or launch.kind == "gradient_squares"]


def _empty(shape: tuple[int, ...], dtype: torch.dtype, aligned: bool) -> torch.Tensor:
    elements = torch.Size(shape).numel()
    skipped = 0 if aligned else 1
    return torch.empty(elements + 1, dtype=dtype)[skipped : skipped + elements].view(shape)


def _launch(kernel: Any, arguments: dict[str, Any]) -> Launch:
    types, constants = [], []
    for param in kernel.params:
        value = arguments.pop(param.name)
        if param.is_constexpr or value is None:
            constants.append((param.name, _named(value)))
        else:
            assert value.data_ptr() % 16 == 0, f"{param.name} would be compiled as unaligned"
            types.append((param.name, "*" + NAMES[value.dtype]))
    name = f"{kernel.fn.__module__}:{kernel.fn.__name__}"
    return Launch(name, tuple(types), tuple(constants), tuple(arguments.items()))


def _named(value: Any) -> Any:
    from fusedstep.kernels.rules import UPDATES

    if isinstance(value, tuple):
        return tuple(map(_named, value))
    if is_dataclass(value):
        return _with_fields(value, _named)
    for name, update in UPDATES.items():
        if value is update:
            return name
    return getattr(value, "name", value)  # a type


def _with_fields(config: Any, change: Callable[[Any], Any]) -> Any:
    return replace(config, **{f.name: change(getattr(config, f.name)) for f in fields(config)})


def _value(value: Any) -> Any:
    import triton.language as tl

    from fusedstep.kernels.rules import UPDATES

    if isinstance(value, tuple):
        return tuple(map(_value, value))
    if is_dataclass(value):
        return _with_fields(value, _value)
    if value in UPDATES:
        return UPDATES[value]
    return tl.dtype(value) if value in (*NAMES.values(), *OF_BYTES) else value


# Kinds of work that plug the rule in.
PLUGGED = ("UPDATE", "TINY_UPDATE", "VECTOR_UPDATE")
# Others that load parameters.
LOADS_P = ("SQUARES", "TINY", "VECTOR")


def without_twins(launches: Iterable[Launch]) -> list[Launch]:
    """Leaves out launches that differ only in an argument that their kind of work does not use, or
    in the stride of the table."""
    found: dict[Any, Launch] = {}
    for launch in launches:
        looked_at = dict(launch.constants)
        config = looked_at.pop("CFG", None)
        if launch["KIND"] and launch.kind not in PLUGGED:
            looked_at["UPDATE"] = None
            dtypes = config.DTYPES[: 3 if config.VECTOR else 4]
            config = replace(config, DTYPES=dtypes, MOMENTUM=None, **_storage_of_p(launch))
        if launch.kind in WITHOUT_TILES:
            config = replace(config, ALIGNED=None)
        key = (launch.kernel, launch.arguments, config, tuple(looked_at.items()), launch.options)
        found.setdefault(key, launch)
    return list(found.values())


def _storage_of_p(launch: Launch) -> dict[str, Any]:
    """What kinds of work that store no parameter look at, if they load any."""
    code, place = launch["CODES"][0], launch["COMPANIONS"][0]
    if launch.kind not in LOADS_P or not place:
        return {"CODES": None, "COMPANIONS": None}
    return {"CODES": code, "COMPANIONS": launch["DTYPES"][place]}


def compile_for(launch: Launch, target: str) -> Facts:
    """Compiles as the launcher does, for sm_.. or gfx..., and reads the result."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    on_amd = target.startswith("gfx")
    gpu = GPUTarget("hip", target, 64) if on_amd else GPUTarget("cuda", int(target[3:]), 32)
    module, _, name = launch.kernel.partition(":")
    kernel = getattr(importlib.import_module(module), name)
    place = {param.name: index for index, param in enumerate(kernel.params)}
    constants = {(place[name],): _value(value) for name, value in launch.constants}
    signature = {name: "constexpr" for name, _ in launch.constants} | dict(launch.arguments)
    # Tables and scratch come from torch's allocator, and are smaller than 2 GiB.
    facts = [["tt.divisibility", 16], *([["tt.pointer_range", 32]] if on_amd else [])]
    attributes = {(place[name],): facts for name, t in launch.arguments if t.startswith("*")}
    source = ASTSource(kernel, {n: signature[n] for n in place}, constants, attributes)
    options = dict(launch.options)
    if on_amd:
        options.pop("maxnreg", None)  # the package passes it to CUDA only
    asm = triton.compile(source, target=gpu, options=options).asm
    if on_amd:
        return _facts_amd(asm["llir"], asm["amdgcn"])
    loop = hot_loop(asm["cubin"]) if counts_loop(launch, target) else NO_LOOP
    return _facts(asm["ptx"], asm["cubin"], loop)


def counts_loop(launch: Launch, target: str) -> bool:
    """Whether the instructions of the loop over tiles are counted: in the usual cases."""
    has_tiles = launch.is_aligned and launch.kind not in WITHOUT_TILES
    return target == "sm_90" and has_tiles and launch.is_usual


# Accesses that name a level of the cache are not to slots: only factors of columns are loaded so.
PTX_ACCESS = re.compile(
    r"\b(?P<what>ld|st)\.global(?!\.ca\b)(?:\.[\w:]+)*?"
    r"(?:\.v(?P<lanes>\d))?\.[bfsu](?P<bits>\d+)\b"
    r"|\bcp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], (?P<bytes>0x[0-9a-f]+)"
)
# Without a rounding, ptxas may fuse a product and a sum.
PTX_INEXACT = re.compile(
    r"\bfma\.\S+|\S+\.approx\b\S*|\S+\.ftz\b\S*|\bdiv\.full\S*|\bmad\.(?:rn\.)?f\S+"
    r"|\b(?:add|sub|mul)\.(?:f|bf)\d\S*"
)
PTX_FLOAT_ATOMIC = re.compile(r"\b(?:red|atom)\.\S*\.(?:f|bf)\d\S*")


def _facts(ptx: str, cubin: bytes, loop: Loop) -> Facts:
    used = report(cubin, "-res-usage")
    registers, stack, local = (
        int(re.search(rf"{what}:(\d+)", used)[1]) for what in ("REG", "STACK", "LOCAL")
    )
    loads, stores = Counter(), Counter()
    for match in PTX_ACCESS.finditer(ptx):
        bits = int(match["lanes"] or 1) * int(match["bits"] or 0)
        size = int(match["bytes"], 16) if match["bytes"] else bits // 8
        (stores if match["what"] == "st" else loads)[size] += 1
    inexact, atomics = (tuple(sorted(set(p.findall(ptx)))) for p in (PTX_INEXACT, PTX_FLOAT_ATOMIC))
    return Facts(registers, stack + local, 0, dict(loads), dict(stores), inexact, atomics, loop)


# Read from LLVM's text, because the assembler also loads several numbers of a table at once. Here
# they can still be told from the vectors of a slot.
LLVM_ACCESS = re.compile(
    r"\b(?P<what>load|store) <(?P<lanes>\d+) x (?P<type>\w+)>[^\n]*ptr addrspace\(1\)"
    r"|call [^\n]*@llvm\.amdgcn\.raw\.ptr\.buffer\.(?P<buffer>load|store)\.v(?P<n>\d+)(?P<t>\w+)"
)
LLVM_BITS = {"double": 64, "float": 32, "half": 16, "bfloat": 16}
# Read from LLVM's text, because the backend expands an exact division into fused steps.
LLVM_INEXACT = re.compile(
    r"\b(?:fadd|fsub|fmul|fdiv|frem|fneg|call) (?:fast|contract|reassoc|arcp|afn|nsz|nnan|ninf)\b"
    r"|!fpmath|@llvm\.fma\S*|@llvm\.fmuladd\S*|@llvm\.amdgcn\.(?:rcp|rsq|sqrt|fmed|div)\S*"
    r'|@__ocml_native\S*|"unsafe-fp-math"="true"|"denormal-fp-math-f32"="preserve-sign\S*'
)
LLVM_FLOAT_ATOMIC = re.compile(r"\batomicrmw (?:volatile )?f\w+|atomic\.(?:fadd|pk)\S*")


def _facts_amd(llir: str, amdgcn: str) -> Facts:
    count = {name: int(n) for name, n in re.findall(r"\.(\w+):\s+(\d+)$", amdgcn, re.MULTILINE)}
    spilled = count["vgpr_spill_count"] + count["private_segment_fixed_size"]
    loads, stores = Counter(), Counter()
    for match in LLVM_ACCESS.finditer(llir):
        kind, lanes = match["type"] or match["t"], int(match["lanes"] or match["n"])
        size = lanes * LLVM_BITS.get(kind, int(re.sub(r"\D", "", kind) or 0)) // 8
        if lanes > 1 and (lanes, kind) != (2, "i32"):  # that is a number of a table
            (stores if "store" in (match["what"], match["buffer"]) else loads)[size] += 1
    inexact = set(LLVM_INEXACT.findall(llir))
    if not re.search(r"\b[fsu]div\b|\b[su]rem\b|@llvm\.sqrt", llir):
        inexact.update(re.findall(r"\bv_(?:pk_)?(?:fma|fmac|mac|mad)_\w*f\d+\w*", amdgcn))
    atomics = set(LLVM_FLOAT_ATOMIC.findall(llir))
    return Facts(
        count["vgpr_count"] + count.get("agpr_count", 0),
        spilled,
        count["sgpr_spill_count"],
        dict(loads),
        dict(stores),
        tuple(sorted(inexact)),
        tuple(sorted(atomics)),
    )


def compile_here() -> None:
    """Prepares a worker: it compiles kernels even if this process interprets them."""
    os.environ.pop("TRITON_INTERPRET", None)


def workers() -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(min(2, os.cpu_count() or 1), context, compile_here)
