"""Tests of the simulator's sanitizer builds: each reports the planted faults, and nothing else."""

from __future__ import annotations

import re

import pytest

from . import load, run_python
from .samples import built, run_launches
from .sanitized import SANITIZER_EXIT_CODE

# Faults that the sanitizers report: (kernel and its launch, the report)
OUT_OF_BOUNDS = "AddressSanitizer: heap-buffer-overflow"
BEYOND_SHARED = {"name": "read_shared", "shared": 128, "out": 32}
STAGES = {"grid": 3, "block": 32, "shared": 4, "n": 64, "stages": 3}
STAGES |= {"x": 64, "out": 192, "counters": 4}
ASAN = {
    "beyond shared memory": (BEYOND_SHARED | {"shift": 1}, OUT_OF_BOUNDS),
    "before shared memory": (BEYOND_SHARED | {"shift": -1}, OUT_OF_BOUNDS),
    "beyond global memory": ({"name": "one_element", "out": 5, "shift": 5}, OUT_OF_BOUNDS),
    "before global memory": ({"name": "one_element", "out": 5, "shift": -1}, OUT_OF_BOUNDS),
    "a misaligned vector": (
        {"name": "copy_vectors", "x": 64, "out": 64, "n": 32, "shift": 1},
        "misaligned address 0x[0-9a-f]* for type 'const struct uint4'",
    ),
    "an overflow": ({"name": "overflow", "out": 1, "n": 40000}, "signed integer overflow: 40000"),
}
RACE = r"ThreadSanitizer: data race[^$]*samples.cu"
SUMS = {"block": 64, "shared": 8, "n": 64, "x": 64, "out": 1}
TSAN = {
    "a missing __syncthreads": ({"name": "block_sums without a barrier"} | SUMS, RACE),
    "a missing __syncwarp": (
        {"name": "turn_warps without a barrier", "shared": 128, "x": 32, "out": 32},
        RACE,
    ),
    "a missing release": ({"name": "stages without release"} | STAGES, RACE),
    "missing fences": ({"name": "stages without fences"} | STAGES, RACE),
    "a release that other threads' writes may pass": (
        {"name": "stages without a barrier"} | STAGES,
        RACE,
    ),
    "blocks write the same number": (
        {"name": "all_blocks_write_one_number", "grid": 2, "out": 1},
        RACE,
    ),
}
WELL = [
    {"name": "block_sums", "grid": 2} | SUMS | {"out": 2},
    {"name": "turn_warps", "block": 64, "shared": 256, "x": 64, "out": 64},
    {"name": "exchanges", "block": 32, "x": 32, "out": 11 * 32},
    {"name": "stages"} | STAGES,
    {"name": "stages with fences"} | STAGES,
    {"name": "locked", "grid": 5, "counters": 1, "out": 1},
    {"name": "copy_vectors", "x": 32, "out": 32, "n": 32},
    {"name": "arrivals", "grid": 4, "counters": 1, "out": 128},
]


def check_report(variant, launches, report):
    done = run_launches(variant, launches)
    assert re.search(report, done.stderr), done.stderr
    assert done.returncode == SANITIZER_EXIT_CODE or "runtime error" in done.stderr


@pytest.mark.parametrize("fault", ASAN)
def test_asan_and_ubsan_report(fault):
    options, report = ASAN[fault]
    check_report("asan", [options], report)


@pytest.mark.parametrize(("seed", "resident"), [(0, 2), pytest.param(7, 0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fault", TSAN)
def test_tsan_reports_whatever_the_schedule(fault, seed, resident):
    options, report = TSAN[fault]
    check_report("tsan", [options | {"seed": seed, "resident": resident}], report)


@pytest.mark.parametrize("variant", ["asan", "tsan"])
def test_sanitizers_have_nothing_to_say_of_good_kernels(variant):
    choices = [{"seed": seed, "resident": resident} for seed in range(4) for resident in (0, 2)]
    launches = [options | choice for options in WELL for choice in choices]
    done = run_launches(variant, launches)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["done"] * len(launches)


@pytest.mark.parametrize("variant", ["asan", "tsan"])
def test_a_fault_is_an_exception_under_sanitizers_too(variant):
    names = {"name": "exit_before_the_barrier", "block": 64, "n": 40}
    done = run_launches(variant, [names])
    assert "RuntimeError: simcuda: divergent __syncthreads" in done.stderr


ON_TENSORS = """
import importlib, sys, torch
from pathlib import Path
torch.set_num_threads(1)
package, library, numbers, kernel = sys.argv[1:]
samples, controls = importlib.import_module(package).load(Path(library), "_samples")
x = torch.ones(64)
for size, name in ((2, "block_sums"), (int(numbers), kernel)):
    out = torch.zeros(size)
    places = {"x": x.data_ptr(), "out": out.data_ptr()}
    samples.launch(name, grid=2, block=64, shared=8, n=64, **places)
    print(out.tolist(), flush=True)
"""


# (numbers in the tensor, kernel, the report)
TENSORS = {
    "asan": (1, "block_sums", OUT_OF_BOUNDS),
    "tsan": (2, "all_blocks_write_one_number", RACE),
}


@pytest.mark.parametrize("variant", TENSORS)
def test_sanitizers_work_on_tensors(variant):
    numbers, kernel, report = TENSORS[variant]
    arguments = ["-c", ON_TENSORS, __package__, str(built(variant)), str(numbers), kernel]
    done = run_python(variant, arguments)
    assert done.stdout == "[64.0, 0.0]\n"
    assert re.search(report, done.stderr), done.stderr
    assert done.returncode == SANITIZER_EXIT_CODE


@pytest.mark.parametrize("variant", ["asan", "tsan"])
def test_a_sanitizer_must_be_loaded_before_python(variant):
    with pytest.raises(RuntimeError, match=rf"simcuda.run_python\('{variant}', ...\)"):
        load(built(variant), "_samples")
