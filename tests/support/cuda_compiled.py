"""Reads a file that nvcc made: registers, spills and accesses of every kernel on every GPU, and the
PTX for future GPUs."""

from __future__ import annotations

import functools
import importlib.util
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fusedstep.gpu.cut import UNITS
from fusedstep.rules import RULES
from tests.ptxrun.mangled import Name, parse
from tests.ptxrun.module import Module
from tests.ptxrun.nvcc import tool
from tests.support.budgets import allocated

TARGETS = ("sm_80", "sm_90", "sm_100")
COUNTED = "sm_90"  # accesses are counted in its machine code
# Also how else numbers are stored, see `fusedstep/rules/layout.py`.
DTYPES = {0: "fp32", 1: "bf16", 2: "fp16", 3: "fp64", 4: "noisy", 5: "rest16", 6: "rest8"}
DTYPES |= {-1: "any", -2: "-", -3: "stored", -4: "int8"}


@dataclass(frozen=True)
class Facts:
    """Facts about a kernel on a GPU. Accesses to global memory in its code are counted by size."""

    registers: int
    spilled: int  # bytes of stack and other local memory for each thread
    loads: Counter[int] = field(default_factory=Counter)
    stores: Counter[int] = field(default_factory=Counter)
    generic: int = 0  # not known to be to global memory; loads of float64 are not counted
    loop: tuple[int, int] = (0, 0)  # over vectors: instructions, and 16-byte loads


def module_file() -> Path | None:
    """The extension module with the kernels; None if it was not built."""
    found = importlib.util.find_spec("fusedstep._cuda")
    return Path(found.origin) if found is not None and found.origin else None


@functools.cache
def cuobjdump() -> str | None:
    """cuobjdump of the CUDA toolkit, or else Triton's. An old one does not know all targets."""
    found = tool("cuobjdump")
    triton = None if found else importlib.util.find_spec("triton")
    for folder in triton.submodule_search_locations or () if triton else ():
        path = Path(folder) / "backends" / "nvidia" / "bin" / "cuobjdump"
        found = str(path) if path.exists() else found
    known = "" if found is None else subprocess.check_output([found, "--help"], text=True)
    return found if all(target in known for target in TARGETS) else None


def _lines(*arguments: str | Path) -> Iterator[str]:
    command = [str(cuobjdump()), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)")


def resources(file: Path) -> dict[tuple[str, Name], Facts]:
    """(GPU, kernel) -> facts. `with_accesses` adds the accesses."""
    found: dict[tuple[str, Name], Facts] = {}
    target, name = "", None
    for line in _lines("-res-usage", file):
        if line.startswith("arch = "):
            target = line.split()[-1]
        elif line.startswith(" Function "):
            name = parse(line.split()[1].rstrip(":"))
        elif name is not None and (match := RESOURCES.search(line)):
            registers, stack, local = map(int, match.groups())
            found[target, name] = Facts(registers, stack + local)
    return found


# LDG.E.128.CONSTANT, STG.E.U16, LD.E.64: no size is 4 bytes.
ACCESS = re.compile(r"\b(?P<what>LDG?|STG?)\.E(?P<more>(?:\.\w+)*) ")
SIZES = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+([^;]*);")
JUMP = re.compile(r"\bBRA\b[^;]*?0x([0-9a-f]+)")


def loop_over_vectors(code: list[tuple[int, str]]) -> tuple[int, int]:
    """The instructions of the inner loop with the most 16-byte loads, and these loads, in a list of
    (address, text). Instructions of rare cases count as well, such as a gradient scale or a slow
    quotient."""
    places = {address: place for place, (address, _) in enumerate(code)}
    loops = []
    for place, (_, text) in enumerate(code):
        first = places.get(int(jump[1], 16)) if (jump := JUMP.search(text)) else None
        if first is not None and first < place:
            loops.append((first, place))
    inner = [(a, b) for a, b in loops if not any(a <= c and d < b for c, d in loops)]
    counts = [
        (-sum("LD" in text and ".E.128" in text for _, text in code[a : b + 1]), b + 1 - a)
        for a, b in inner
    ]
    loads, length = min(counts, default=(0, 0))
    return (length, -loads) if loads else (0, 0)


def with_accesses(
    file: Path, target: str, found: dict[tuple[str, Name], Facts]
) -> dict[Name, Facts]:
    """The facts of a GPU's kernels, with the loads and stores in their machine code."""
    own = {name: facts for (arch, name), facts in found.items() if arch == target}
    counts = {name: (Counter[int](), Counter[int](), Counter[str]()) for name in own}
    loads, stores, generic = Counter[int](), Counter[int](), Counter[str]()
    codes: dict[Name, list[tuple[int, str]]] = {name: [] for name in own}
    code: list[tuple[int, str]] = []
    for line in _lines("-sass", "-arch", target, file):
        if "Function : " in line:
            name = parse(line.split()[-1])
            loads, stores, generic = counts[name]
            code = codes[name]
        elif match := INSTRUCTION.match(line):
            code.append((int(match[1], 16), match[2]))
        if (".E" in line) and (match := ACCESS.search(line)):
            words = match["more"].split(".")
            size = next((SIZES[word] for word in words if word in SIZES), 4)
            (loads if match["what"].startswith("LD") else stores)[size] += 1
            # Scalars are float64, in global memory or among the arguments.
            is_scalar = match["what"] == "LD" and size == 8
            generic[match["what"]] += len(match["what"]) == 2 and not is_scalar
    return {
        name: Facts(
            facts.registers,
            facts.spilled,
            *counts[name][:2],
            counts[name][2].total(),
            loop_over_vectors(codes[name]),
        )
        for name, facts in own.items()
    }


def ptx_of(file: Path) -> list[Module]:
    """All PTX in the file: one module for each compiled source."""
    texts: list[list[str]] = []
    for line in _lines("-ptx", file):
        if line.startswith((".version", "Fatbin")):
            texts.append([])
        if texts:
            texts[-1].append(line)
    return [Module("".join(text)) for text in texts if text[0].startswith(".version")]


INEXACT = re.compile(
    r"\bfma\.\S+|\S+\.approx\b\S*|\S+\.ftz\b\S*|\bdiv\.full\S*|\bmad\.(?:rn\.)?f\S+"
    r"|(?<![\w.])(?:add|sub|mul)\.(?:f|bf)\d\S*"  # ptxas may fuse these: no rounding is given
)
FLOAT_ATOMIC = re.compile(r"\b(?:red|atom)\.\S*\.(?:f|bf)\d\S*")


@dataclass(frozen=True)
class Text:
    """Facts about a kernel's PTX."""

    inexact: frozenset[str]
    float_atomics: frozenset[str]


def texts(file: Path) -> dict[Name, Text]:
    found = {}
    for module in ptx_of(file):
        for entry in module.entries:
            body = module.body(module.functions[entry])
            sets = (frozenset(p.findall(body)) for p in (INEXACT, FLOAT_ATOMIC))
            found[parse(entry)] = Text(*sets)
    return found


def label(name: Name) -> str:
    """A kernel's name in the budgets: its kind of work or rule, its dtypes, its other options."""
    kind, given = name.function.rpartition("::")[2], list(name.arguments)
    if kind == "gradient_squares":
        return f"{kind} {DTYPES[int(given[0])]}"
    if kind not in ("elementwise", "phase"):
        return str(name)
    wide = " in fp64" if type(given[-1]) is bool and given.pop() else ""
    if kind == "elementwise":
        kind = list(RULES)[given.pop(0)]
    else:
        kind = UNITS[given.pop(0)]
        vectors = given.pop()
        wide = f" x{vectors}" + wide if vectors != 1 else wide
    return f"{kind} {'/'.join(DTYPES[int(one)] for one in given)}{wide}"


def is_specialized(name: Name) -> bool:
    """Whether a kernel was built for certain dtypes. Its loads and stores are the hot path."""
    dtypes = label(name).split()[1].split("/") if name.arguments else []
    return not {"any", "stored"} & {*dtypes} and any(one != "-" for one in dtypes)


def table(found: dict[str, dict[Name, Facts]]) -> dict[str, dict[str, int]]:
    """The budgets: registers on each GPU; in the code for COUNTED, 16-byte loads and stores, and
    the loop over vectors."""
    lines = {}
    for name, counted in found[COUNTED].items():
        registers = {target: allocated(found[target][name].registers) for target in TARGETS}
        more = {"loads": counted.loads[16], "stores": counted.stores[16]}
        loop = (
            dict(zip(("loop", "loop loads"), counted.loop, strict=True))
            if any(counted.loop)
            else {}
        )
        lines[label(name)] = {**registers, **more, **loop}
    return lines


def release(file: Path) -> str:
    """The PTX version of the compiler that made a file. Each release of CUDA has another one."""
    (version,) = {module.text.split()[1] for module in ptx_of(file)}
    return f"PTX {version}"
