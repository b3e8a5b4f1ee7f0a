"""The CPU walkers have the same bits on every processor. `walkers.cpp` is built for each and prints
hashes; another processor is emulated."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    Path(__file__).with_name("walkers.cpp"),
    *(ROOT / f"csrc/cpu/{name}.cpp" for name in ("dispatch", "dispatch_factored", "work_list")),
    ROOT / "csrc/cpu/threads.cpp",
]
# As in CMakeLists.txt.
FLAGS = ["-O3", "-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += ["-Wno-psabi", "-pthread", f"-I{ROOT / 'csrc'}"]
FLAGS += ["-DFUSEDSTEP_LEVEL=walk_all", "-DFUSEDSTEP_FACTORED=walk_all_factored"]
X86, AVX2 = ["g++"], ["g++", "-march=x86-64-v3"]
AARCH64 = ["aarch64-linux-gnu-g++", "-static"]


def printed(folder: Path, compiler: list[str], *emulator: str) -> list[str]:
    """The hashes that a build of the program prints, one line a case."""
    program = folder / "walkers"
    subprocess.run([*compiler, *FLAGS, *map(str, SOURCES), "-o", str(program)], check=True)
    run = subprocess.run([*emulator, str(program)], capture_output=True, text=True, check=True)
    return run.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="compares with x86-64")
@pytest.mark.skipif(
    not shutil.which(AARCH64[0]) or not shutil.which("qemu-aarch64-static"),
    reason="needs Debian's g++-aarch64-linux-gnu and qemu-user-static",
)
def test_an_aarch64_processor_has_the_bits_of_x86(tmp_path):
    expected = printed(tmp_path, X86)
    assert len(expected) > 500 and len({line.split()[-1] for line in expected}) > 300
    assert printed(tmp_path, AARCH64, "qemu-aarch64-static") == expected


@pytest.mark.slow
@pytest.mark.skipif("avx2" not in Path("/proc/cpuinfo").read_text(), reason="needs AVX2")
def test_avx2_has_the_bits_of_sse2(tmp_path):
    assert printed(tmp_path, AVX2) == printed(tmp_path, X86)


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["g++-9", "g++-10", "g++-11", "g++-13", "g++-14", "clang++"])
def test_every_compiler_makes_the_same_bits(compiler, tmp_path):
    if not shutil.which(compiler):
        pytest.skip(f"there is no {compiler}")
    expected = printed(tmp_path, X86)
    assert printed(tmp_path, [compiler]) == expected
