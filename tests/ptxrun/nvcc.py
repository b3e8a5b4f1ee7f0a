"""Finds nvcc, and compiles sources to PTX with it."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .module import Module

NEEDS_NVCC = "needs nvcc"
# As in CMakeLists.txt: no product and sum become an fma unless the source says so.
OPTIONS = ("-std=c++17", "-O3", "--fmad=false")
KEPT = Path(__file__).parents[2] / "build" / "ptx"


@functools.cache
def tool(name: str) -> str | None:
    """The path of a tool of the CUDA toolkit: on PATH, in CUDA_HOME, or in /usr/local/cuda."""
    found = shutil.which(name)
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    for home in filter(None, homes):
        found = found or shutil.which(name, path=str(Path(home) / "bin"))
    return found


@functools.cache
def version() -> str:
    nvcc = tool("nvcc") or ""
    return subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout


def texts(source: Path, folders: Sequence[Path]) -> bytes:
    """The contents of the source and of everything in these folders that it may include."""
    found = {source}
    for folder in folders:
        for kind in ("*.h", "*.cuh", "*.cu"):
            found.update(folder.rglob(kind))
    return b"".join(str(path).encode() + path.read_bytes() for path in sorted(found))


@functools.cache
def module_of(source: Path, arch: int = 90, folders: tuple[Path, ...] = ()) -> Module:
    """The PTX of a source. It is cached on disk, under a hash of the sources, options and nvcc."""
    key = hashlib.sha256(texts(source, folders) + repr((arch, OPTIONS, version())).encode())
    kept = KEPT / f"{source.stem}-{key.hexdigest()[:24]}.ptx"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            made = Path(folder) / "made.ptx"
            command = [str(tool("nvcc")), "-ptx", f"-arch=compute_{arch}", *OPTIONS]
            subprocess.run([*command, str(source), "-o", str(made)], check=True)
            made.rename(kept)  # atomic, since another run may be reading or making it
    return Module(kept.read_text())
