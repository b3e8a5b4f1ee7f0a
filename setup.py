"""Builds fusedstep._native with CMake for `pip install`, and fusedstep._cuda if nvcc is found.
Everything else is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Runs CMake once for both modules and installs them where setuptools expects `_native`. The
    build folder is kept, so the next build compiles only what changed."""

    def build_extension(self, ext: Extension) -> None:
        if ext.optional:  # _cuda: CMake builds it together with _native
            return
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        # pip builds in a new environment each time, so the path of ninja changes.
        ninja = shutil.which("ninja")
        kind = "ninja" if ninja else "make"
        build = ROOT / "build" / f"{sys.implementation.cache_tag}-{self.plat_name}-{kind}"
        cuda = os.environ.get("FUSEDSTEP_CUDA", "AUTO")
        configure = [
            "cmake",
            f"-S{ROOT}",
            f"-B{build}",
            f"-DPython3_EXECUTABLE={sys.executable}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DFUSEDSTEP_CUDA={cuda}",
        ]
        if ninja:
            configure += ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        subprocess.run(configure, check=True)
        make = ["cmake", "--build", str(build)]
        subprocess.run([*make, "--target", "_native"], check=True)
        # If nvcc fails (say, on a GPU it does not know), _native is still installed.
        if subprocess.run(make, check=cuda == "ON").returncode != 0:
            print("fusedstep: the CUDA backend was not built; see above", file=sys.stderr)
            for old in (*build.rglob("_cuda.*.so"), *target.glob("_cuda.*.so")):
                old.unlink()  # left by an earlier build
        install = ["cmake", "--install", str(build), "--prefix", str(target)]
        subprocess.run(install, check=True)


setup(
    ext_modules=[
        Extension("fusedstep._native", sources=[]),
        Extension("fusedstep._cuda", sources=[], optional=True),
    ],
    cmdclass={"build_ext": CMakeBuild},
)
