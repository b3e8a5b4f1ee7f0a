"""The sources of the CUDA kernels on the simulator, under sanitizers: they report nothing, and they
report planted faults."""

import json
import os
import re
from pathlib import Path

import pytest

from tests import simcuda
from tests.simcuda.build import CACHE, digest
from tests.simcuda.sanitized import SANITIZER_EXIT_CODE
from tests.support import cuda_sanitized
from tests.support.cuda_on_cpu import library
from tests.support.cuda_on_ptx import CSRC


def outcomes(variant, problems, jobs, csrc=CSRC):
    """{job: (exit code, report)}"""
    given = (str(library(variant, csrc)), problems, *jobs)
    done = simcuda.run_python(variant, ["-m", cuda_sanitized.__name__, *given], timeout=1800)
    assert done.returncode == 0, done.stderr
    return {job: tuple(rest) for job, *rest in map(json.loads, done.stdout.splitlines())}


def edited(name, edit):
    """A copy of the sources in the cache. `edit` gets (path, text) and returns the new text."""
    paths = sorted(path for path in CSRC.rglob("*") if path.is_file())
    texts = [(str(path.relative_to(CSRC)), edit(path, path.read_text())) for path in paths]
    folder = CACHE / f"{name}-{digest([text for pair in texts for text in pair])}"
    if not folder.exists():
        incomplete = Path(f"{folder}.{os.getpid()}")
        for path, text in texts:
            (incomplete / path).parent.mkdir(parents=True, exist_ok=True)
            (incomplete / path).write_text(text)
        incomplete.rename(folder)
    return folder


def without_float64(path, text):
    """Leaves out half of the kernels: UBSan's checks take half a minute to compile."""
    if path.name == "factored.cu":
        assert "find<true>(" in text
        return text.replace("find<true>(", "find<false>(")
    return re.sub(r"(instance<Rule, kAny, kAny, kAny\w*), true>", r"\1, false>", text)


# ASan and UBSan.


@pytest.mark.slow
def test_no_access_is_out_of_bounds_or_misaligned_and_what_is_planted_is_reported():
    faults = ["an element after a whole vector", "a column too many", "a column's sum too few"]
    csrc = edited("float32", without_float64)
    found = outcomes("asan", "ragged", ["nothing", *faults, "no alignment"], csrc)
    assert found.pop("nothing") == (0, "")
    code, report = found.pop("no alignment")
    assert code == SANITIZER_EXIT_CODE and "misaligned address" in report
    for fault in faults:
        code, report = found[fault]
        assert code == SANITIZER_EXIT_CODE and "heap-buffer-overflow" in report, fault


@pytest.mark.slow
def test_every_fault_is_reported_by_asan_and_nothing_else_in_float64_either():
    found = outcomes("asan", "with float64", ["nothing", *cuda_sanitized.ASAN])
    assert found.pop("nothing") == (0, "")
    for fault, (code, report) in found.items():
        assert code == SANITIZER_EXIT_CODE, fault
        wanted = "misaligned address" if fault == "no alignment" else "heap-buffer-overflow"
        assert wanted in report, (fault, report)


# TSan. In these sources a number removes one barrier.

INCLUDE = "#include <cuda_runtime.h>\n"
# This one can be removed: a sum over the block, with its own barrier, comes in between.
SPARE = {"columns barrier 3"}


def weakened():
    """(folder, what each number removes)."""
    removed = []

    def number(what):
        removed.append(what)
        return f"fusedstep_planted == {len(removed) - 1}"

    def edit(path, text):
        def barrier(found):
            of_file = sum(what.startswith(f"{path.stem} barrier") for what in removed)
            return f"if (!({number(f'{path.stem} barrier {of_file + 1}')})) {found[0]}"

        if path.suffix == ".cuh":
            text = re.sub(r"__syncthreads\(\);", barrier, text)
        if path.name == "device.cuh":
            text = text.replace(INCLUDE, f'{INCLUDE}extern "C" int fusedstep_planted;\n')
        if path.name == "launch.cu":
            text += '\nextern "C" { int fusedstep_planted = -1; }\n'
        return text

    return edited("weakened", edit), removed


RACE = r"WARNING: ThreadSanitizer: data race|simcuda: divergent __syncthreads"


@pytest.mark.slow
def test_there_is_no_race_and_what_is_planted_is_one():
    csrc, removed = weakened()
    fault = str(removed.index("statistics barrier 1"))
    found = outcomes("tsan", "smallest", ["nothing", fault], csrc)
    assert found.pop("nothing") == (0, "")
    code, report = found[fault]
    assert code == SANITIZER_EXIT_CODE and re.search(RACE, report), report


@pytest.mark.slow
def test_every_barrier_is_needed():
    csrc, removed = weakened()
    jobs = [str(number) for number in range(len(removed))]
    found = outcomes("tsan", "small", jobs, csrc)
    silent = {job for job, (code, report) in found.items() if not re.search(RACE, report)}
    assert {removed[int(job)] for job in silent} <= SPARE


@pytest.mark.slow
def test_there_is_no_race_in_the_sources_as_they_are():
    assert outcomes("tsan", "small", ["nothing"]) == {"nothing": (0, "")}
