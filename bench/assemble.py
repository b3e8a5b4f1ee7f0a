"""Builds the package in build/gpu with the compilers of this machine, and downloads nothing.

This needs no write access to site-packages, and no setuptools new enough for our pyproject.toml:
the one that comes with torch's own index is too old.
"""

import importlib.util
import os
import shutil
import sysconfig
import time
from pathlib import Path

from bench.parts import BUILD, ROOT, Parts, program

PACKAGE = BUILD / "fusedstep"


def assemble(parts: Parts, seconds: float) -> None:
    """If a module cannot be built, everything else still runs. Without the host's module, steps are
    slower. Without CUDA's, only Triton's kernels are tested."""
    end = time.monotonic() + seconds
    leave_out = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.rmtree(PACKAGE, ignore_errors=True)
    shutil.copytree(ROOT / "python" / "fusedstep", PACKAGE, ignore=leave_out)
    shutil.copytree(ROOT / "kernels", PACKAGE / "kernels", ignore=leave_out)
    build(parts, "build", "_native", "OFF", 0.6 * seconds)
    if why := no_cuda():
        parts.note("build-cuda", why)
    elif build(parts, "build-cuda", "_cuda", "ON", end - time.monotonic()):
        resources(parts)


def no_cuda() -> str:
    """Why CUDA's module is not built; empty if it should be."""
    import torch

    if torch.version.cuda is None:
        return "skipped: this torch is not one for CUDA"
    if program("nvcc") is None:
        return "FAILED: no nvcc on PATH or in CUDA_HOME/bin, so the CUDA backend is not tested"
    return ""


def build(parts: Parts, name: str, module: str, cuda: str, seconds: float) -> bool:
    """Each module has a folder of its own, so that one can be built where the other fails."""
    cmake, ninja = program("cmake"), program("ninja")
    if cmake is None:
        parts.note(name, f"FAILED: no cmake, so there is no {module}")
        return False
    folder = BUILD / module
    configure = [
        *(cmake, f"-S{ROOT}", f"-B{folder}", f"-DFUSEDSTEP_CUDA={cuda}"),
        f"-DFUSEDSTEP_PYTHON_INCLUDE={sysconfig.get_paths()['include']}",
        *(["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []),
    ]
    make = [cmake, "--build", str(folder), "--parallel", str(os.cpu_count()), "--target", module]
    if not parts.run_all(name, [configure, make], seconds):
        return False
    for library in folder.rglob(f"{module}.*so"):
        shutil.copy(library, PACKAGE)
    return True


def resources(parts: Parts) -> None:
    """Prints registers, shared memory and local memory of every CUDA kernel."""
    triton = importlib.util.find_spec("triton")  # it brings a cuobjdump, too
    more = Path(triton.origin).parent / "backends/nvidia/bin" if triton and triton.origin else ROOT
    cuobjdump = program("cuobjdump", more)
    if cuobjdump is None:
        parts.note("resources", "skipped: no cuobjdump")
        return
    (module,) = PACKAGE.glob("_cuda.*so")
    parts.run("resources", [cuobjdump, "-res-usage", str(module)], 60)
