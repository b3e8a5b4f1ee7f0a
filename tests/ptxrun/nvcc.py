"""nvcc for tests: where it is, and the PTX that it makes of a source."""

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
# As CMakeLists.txt has it: no product and sum become one unless the source says so.
OPTIONS = ("-std=c++17", "-O3", "--fmad=false")
KEPT = Path(__file__).parents[2] / "build" / "ptx"


@functools.cache
def tool(name: str) -> str | None:
    """A tool of the CUDA toolkit: on the PATH, in CUDA_HOME, or where toolkits are installed."""
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
    """All that a compilation can depend on, as far as it lies in these folders."""
    found = {source}
    for folder in folders:
        for kind in ("*.h", "*.cuh", "*.cu"):
            found.update(folder.rglob(kind))
    return b"".join(str(path).encode() + path.read_bytes() for path in sorted(found))


@functools.cache
def module_of(source: Path, arch: int = 90, folders: tuple[Path, ...] = ()) -> Module:
    """The PTX of a source, kept between runs under a name made of all that went into it."""
    key = hashlib.sha256(texts(source, folders) + repr((arch, OPTIONS, version())).encode())
    kept = KEPT / f"{source.stem}-{key.hexdigest()[:24]}.ptx"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            made = Path(folder) / "made.ptx"
            command = [str(tool("nvcc")), "-ptx", f"-arch=compute_{arch}", *OPTIONS]
            subprocess.run([*command, str(source), "-o", str(made)], check=True)
            made.rename(kept)  # at once: another run may want it, too
    return Module(kept.read_text())
