"""Builds Python modules from CUDA sources and the simulator. Results are cached by the sources.

Only `.cu` files are compiled with the variant's sanitizers; `.cpp` files and the simulator are not.
The library has a second module, `simcuda_controls`, with the simulator's settings.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent.resolve()
CACHE = HERE.parent.parent / "build" / "simcuda"
HEADERS = (".h", ".hpp", ".cuh", ".inc")

COMMON = [
    "-std=c++17",
    "-fPIC",
    "-ffp-contract=off",  # exact arithmetic, as the CPU backend is built
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-gnu-unique",  # each library has its own inline variables; the process does not share them
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",  # unroll
    "-Wno-psabi",
]


@dataclass(frozen=True)
class Variant:
    simulator: str  # flags for the simulator's own sources
    kernels: str  # flags for .cu files
    link: str = ""
    preload: str = ""  # the library that must be loaded before Python starts


VARIANTS = {
    "plain": Variant("", "-O2"),
    "asan": Variant(
        "-DSIMCUDA_ASAN",
        "-O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all",
        "-fsanitize=address,undefined",
        "libasan.so",
    ),
    "tsan": Variant(
        "-DSIMCUDA_TSAN",
        "-O1 -g1 -fno-omit-frame-pointer -fsanitize=thread",
        "-fsanitize=thread",
        "libtsan.so",
    ),
}


@functools.cache
def compiler() -> tuple[str, str]:
    """g++, and its version."""
    name = os.environ.get("CXX", "g++")
    version = subprocess.run([name, "--version"], capture_output=True, text=True, check=True)
    return name, version.stdout


@functools.cache
def machine_flags() -> tuple[str, ...]:
    """Flags for fused multiply-add and half conversions in hardware, if the processor has them."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return ()
    return ("-mfma", "-mf16c") if {"fma", "f16c"} <= set(flags) else ()


def python_includes() -> list[str]:
    import pybind11

    return [f"-I{sysconfig.get_paths()['include']}", f"-I{pybind11.get_include()}"]


def digest(parts: Iterable[object]) -> str:
    result = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else str(part).encode()
        result.update(len(data).to_bytes(8, "little") + data)
    return result.hexdigest()[:20]


def headers(folders: Sequence[Path]) -> list[Path]:
    found = {file for folder in folders for file in folder.rglob("*") if file.suffix in HEADERS}
    return sorted(found)


def run(command: Sequence[str]) -> None:
    plain = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    done = subprocess.run(command, capture_output=True, text=True, env=plain)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
    if done.stderr:
        print(done.stderr, file=sys.stderr)


def produce(target: Path, command: Sequence[str]) -> Path:
    """Runs `command` + [a temporary file], which is renamed to `target` when it is complete."""
    if not target.exists():
        handle, name = tempfile.mkstemp(dir=target.parent, suffix=target.suffix)
        os.close(handle)
        try:
            run([*command, name])
            os.replace(name, target)
        except BaseException:
            os.unlink(name)
            raise
    return target


@dataclass(frozen=True)
class Recipe:
    """One object file to be compiled."""

    source: Path
    flags: tuple[str, ...]
    depends: tuple[Path, ...]

    def target(self) -> Path:
        flags = (*COMMON, *self.flags)
        key = digest([compiler()[1], sys.version, flags, self.source, *self.depends])
        return CACHE / f"{self.source.stem}-{key}.o"

    def compile(self) -> Path:
        language = ("-x", "c++", "-c", str(self.source), "-o")
        target = self.target()
        produce(target, [compiler()[0], *COMMON, *self.flags, *language])
        if self.target() == target:
            return target
        target.unlink(missing_ok=True)  # the sources were edited meanwhile: compile again
        return self.compile()


def recipes(
    sources: Sequence[Path], variant: Variant, include: Sequence[Path], defines: Sequence[str]
) -> list[Recipe]:
    own = tuple(headers([HERE]))
    given = (*own, *headers(include))
    simulator = ("-O2", *variant.simulator.split())
    kernels = (*variant.kernels.split(), *machine_flags())
    host = ("-O1", *python_includes())  # the same for all variants
    folders = (f"-I{HERE}", *(f"-I{folder}" for folder in include), *(f"-D{d}" for d in defines))
    return [
        *(Recipe(s, (*(kernels if s.suffix == ".cu" else host), *folders), given) for s in sources),
        *(Recipe(part, simulator, own) for part in sorted((HERE / "sim").glob("*.cpp"))),
        Recipe(HERE / "controls.cpp", host, own),
    ]


def build(
    module: str,
    sources: Iterable[Path | str],
    *,
    variant: str = "plain",
    include: Iterable[Path | str] = (),
    defines: Iterable[str] = (),
) -> Path:
    """Builds the library with the Python module of this name, from .cu and .cpp files. Returns its
    path."""
    CACHE.mkdir(parents=True, exist_ok=True)
    kind = VARIANTS[variant]
    files = [Path(source).resolve() for source in sources]
    work = recipes(files, kind, [Path(folder).resolve() for folder in include], list(defines))

    def library(objects: Iterable[Path]) -> Path:
        return CACHE / f"{module}-{variant}-{digest([kind.link, *map(str, objects)])}.so"

    ready = library(recipe.target() for recipe in work)
    if ready.exists():
        return ready
    # If two test runs build at the same time, the second one waits and uses the first one's files.
    with open(CACHE / f"{module}-{variant}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(Recipe.compile, work))
        flags = ["-shared", *kind.link.split(), "-ldl", "-o"]
        return produce(library(objects), [compiler()[0], *map(str, objects), *flags])


def load(library: Path, module: str) -> tuple[ModuleType, ModuleType]:
    """The module, and the controls of its simulator."""
    return _load(library, module), _load(library, "simcuda_controls")


@functools.cache
def _load(library: Path, name: str) -> ModuleType:
    for variant, kind in VARIANTS.items():
        if f"-{variant}-" in library.name and kind.preload not in os.environ.get("LD_PRELOAD", ""):
            raise RuntimeError(f"Python must be started by simcuda.run_python({variant!r}, ...)")
    # pybind11 reuses a module with the same full name, so the name includes the library's.
    full = f"{library.stem}.{name}"
    loader = importlib.machinery.ExtensionFileLoader(full, str(library))
    spec = importlib.util.spec_from_file_location(full, str(library), loader=loader)
    assert spec is not None
    result = importlib.util.module_from_spec(spec)
    loader.exec_module(result)
    return result
