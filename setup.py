"""Builds fusedstep._native with CMake for `pip install`, and fusedstep._cuda if nvcc is found.
Everything else is in pyproject.toml.

FUSEDSTEP_NATIVE is AUTO (without CMake or a C++ compiler the package is installed without C++), ON
(then the install fails) or OFF. FUSEDSTEP_CUDA is AUTO, ON or OFF.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()

# One build serves every Python from 3.10, except those without a global lock.
LIMITED = not sysconfig.get_config_var("Py_GIL_DISABLED")
COMPILERS = ("c++", "g++", "clang++")
TOOLS = "apt install g++, dnf install gcc-c++, or conda install gxx"
# The last line of a failed build, which pip shows.
NEEDED = (
    "the C++ kernels were not built (see above): they need GCC 9 or clang 14 or newer "
    f"({TOOLS}) and CMake 3.16 or newer (pip install cmake ninja); FUSEDSTEP_NATIVE=OFF installs "
    "without them."
)
NEEDED_FOR_CUDA = (
    "the CUDA backend was not built (see above): it needs nvcc 12.0 or newer (conda install "
    "cuda-nvcc, or CUDACXX=/path/to/nvcc); FUSEDSTEP_CUDA=OFF installs without it."
)


def choice(name: str) -> str:
    found = os.environ.get(name) or "AUTO"
    if found not in ("AUTO", "ON", "OFF"):
        sys.exit(f"fusedstep: {name} should be AUTO, ON or OFF but is: {found!r}")
    return found


NATIVE, CUDA = choice("FUSEDSTEP_NATIVE"), choice("FUSEDSTEP_CUDA")


def why_not_built() -> str:
    """What a build would lack, and the command that installs it; empty if it lacks nothing."""
    if sys.platform == "win32":
        return "the C++ kernels are for Linux and macOS"
    if shutil.which("cmake") is None:
        return "no cmake: pip install cmake ninja"
    compiler = os.environ.get("CXX", "").split()
    if compiler and shutil.which(compiler[0]) is None:
        return f"CXX is {compiler[0]!r}, which is not on PATH: {TOOLS}"
    if not compiler and not any(map(shutil.which, COMPILERS)):
        return f"no C++ compiler: {TOOLS}"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return f"no Python.h: apt install python{version}-dev, or dnf install python{version}-devel"
    return ""


def say(text: str) -> None:
    print(f"fusedstep: {text}", file=sys.stderr, flush=True)


def for_pypi(text: str) -> str:
    """README without pictures and links of files beside it, which PyPI does not have."""
    text = re.sub(r"!\[[^]]*\]\((?!https?:)[^)]*\)\n*", "", text)
    return re.sub(r"\[([^]]+)\]\((?!https?:|#)[^)]*\)", r"\1", text)


class CMakeBuild(build_ext):
    """Runs CMake once for both modules and installs them where setuptools expects `_native`. The
    build folder is kept, so the next build compiles only what changed."""

    def build_extension(self, ext: Extension) -> None:
        if ext.name == "fusedstep._cuda":  # CMake builds it together with _native
            return
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        target.mkdir(parents=True, exist_ok=True)
        # pip builds in a new environment each time, so the path of ninja changes.
        ninja = shutil.which("ninja")
        kind = "ninja" if ninja else "make"
        build = ROOT / "build" / f"{sys.implementation.cache_tag}-{self.plat_name}-{kind}"
        suffix = ".abi3.so" if LIMITED else sysconfig.get_config_var("EXT_SUFFIX")
        configure = [
            *("cmake", f"-S{ROOT}", f"-B{build}", f"-DFUSEDSTEP_SUFFIX={suffix}"),
            f"-DFUSEDSTEP_PYTHON_INCLUDE={sysconfig.get_paths()['include']}",
            f"-DFUSEDSTEP_CUDA={CUDA}",
        ]
        if ninja:
            configure += ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        make = ["cmake", "--build", str(build), "--parallel", str(os.cpu_count() or 1)]
        for command in (configure, [*make, "--target", "_native"]):
            if subprocess.run(command).returncode != 0:
                sys.exit(f"fusedstep: {NEEDED}")
        # If nvcc fails (say, on a GPU it does not know), _native is still installed.
        if subprocess.run(make).returncode != 0:
            if CUDA == "ON":
                sys.exit(f"fusedstep: {NEEDED_FOR_CUDA}")
            say("the CUDA backend was not built; see above")
            for old in (*build.rglob("_cuda.*so"), *target.glob("_cuda.*so")):
                old.unlink()  # left by an earlier build
        subprocess.run(["cmake", "--install", str(build), "--prefix", str(target)], check=True)
        if LIMITED:
            # Python would prefer the modules that earlier versions of this package built in place.
            for old in ROOT.glob("python/fusedstep/_*.cpython-*.so"):
                old.unlink()


def extensions() -> list[Extension]:
    missing = why_not_built()
    if NATIVE == "OFF":
        return []
    if missing and NATIVE == "ON":
        sys.exit(f"fusedstep: FUSEDSTEP_NATIVE is ON, but the kernels cannot be built: {missing}")
    if missing and not {"egg_info", "dist_info", "sdist"}.intersection(sys.argv):  # pip calls twice
        say(f"built without C++ kernels, so CPU steps are slow and GPUs need Triton: {missing}")
    if missing:
        return []
    return [
        Extension("fusedstep._native", sources=[], py_limited_api=LIMITED),
        Extension("fusedstep._cuda", sources=[], py_limited_api=LIMITED, optional=True),
    ]


built = extensions()
setup(
    long_description=for_pypi((ROOT / "README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
    ext_modules=built,
    cmdclass={"build_ext": CMakeBuild},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if built and LIMITED else {},
)
