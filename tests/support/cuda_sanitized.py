"""Steps of the CUDA backend under a sanitizer, in a Python that simcuda.run_python starts:

    python -m tests.support.cuda_sanitized LIBRARY PROBLEMS JOB...

PROBLEMS names one of LISTS. A JOB is a fault to plant, or "nothing", and runs in a separate
process. Prints a line of JSON for each job: its name, exit code and report.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from fusedstep.backends import cuda
from fusedstep.gpu import tables, work
from tests import simcuda
from tests.support import cuda_on_ptx
from tests.support.accumulating import ACCUMULATE
from tests.support.cases import CASES, DTYPES
from tests.support.cuda_on_cpu import SMALL_UNITS
from tests.support.problems import Problem
from tests.support.stored_cases import PAIRS, STORED
from tests.support.stored_problems import problem as stored_problem

F32, BF16, F16, F64 = DTYPES
CASE = {case.name: case for case in CASES}
ADAMW, PART_CAPPED = CASE["adamw"], CASE["adafactor-part-capped"]
ADAFACTOR, MOMENTUM = CASE["hf-adafactor"], CASE["hf-adafactor-momentum"]

BLOCKS = 3  # that run at the same time
# For TSan, which takes half a second for 15 blocks of 512 threads.
SMALL = [
    Problem(PART_CAPPED, [(10, 24), (5, 520)], steps=1),
    Problem(MOMENTUM, [(7,), (9, 7), (3, 5, 7), (2, 9000)], steps=1),
    Problem(ADAFACTOR, [(1100, 8)], (BF16,), steps=1),
    Problem(ADAMW, [(7,), (9000,)], steps=1),
    Problem(PART_CAPPED, [(100, 24), (9, 8)], steps=1),  # the first has several units
]
# Low-precision storage: numbers of 8 bits with scales, companions of all kinds, noise.
OPTION = {stored.name: stored for stored in STORED}
IN_FEW_BITS = [
    stored_problem(ADAMW, OPTION["int8-noisy"], [(33, 128), (7,)], steps=1),
    stored_problem(MOMENTUM, OPTION["int8"], [(40, 128), (7,)], steps=1),
]
# For ASan: tensors that are ragged, empty or not aligned, in every way.
TENSORS = [(), (1,), (0,), (7,), (1025,), (8193,)]
MATRICES = [(1, 9), (9, 1), (32, 16), (33, 17), (300, 40), (2, 17, 20), (600, 3, 3), (5, 0, 3)]
WIDE = [(3, 4096), (3, 4104), (3, 5001), (2, 8200), (11, 8201), (9, 8208), (9, 12296)]
RAGGED = [
    *(
        Problem(case, [*TENSORS, (33, 17)], (dtype,), offset=offset)
        for case in (ADAMW, CASE["adamw-amsgrad"], CASE["old-adamw"], ACCUMULATE)
        for dtype in (F32, BF16, F16)
        for offset in (0, 1)
    ),
    *(
        Problem(case, [*TENSORS, *MATRICES, *WIDE], (dtype,), offset=offset)
        for case, dtype in ((PART_CAPPED, F32), (MOMENTUM, BF16), (ADAFACTOR, F16))
        for offset in (0, 1)
    ),
    *(replace(problem, steps=2) for problem in SMALL),
    *(
        stored_problem(case, stored, [*TENSORS, (33, 17), (5, 3, 3), (33, 128)], offset=offset)
        for case, stored in PAIRS
        if case in (ADAMW, MOMENTUM) or (case is ADAFACTOR and "rest" in stored.name)
        for offset in (0, 1)
    ),
]
IN_DOUBLE = [
    Problem(ADAMW, [*TENSORS, (33, 17)], (F64,)),
    Problem(MOMENTUM, [*TENSORS, *MATRICES, *WIDE], (F64,)),
]
LISTS = {
    "small": SMALL + IN_FEW_BITS,
    "smallest": [SMALL[0], SMALL[3], SMALL[4]],
    "ragged": RAGGED,
    "with float64": RAGGED + IN_DOUBLE,
}


# Faults for ASan: wrong arguments of a launch.


def one_more(place: int) -> Any:
    """Adds 1 to a cell of the first tensor's row of the table."""
    real = tables.Tables.current

    def current(self: Any, *arguments: Any) -> dict[str, Tensor]:
        found = real(self, *arguments)
        table = found["table"].clone()
        table[0, place] += 1
        return {**found, "table": table}

    return mock.patch.object(tables.Tables, "current", current)


def shorter(name: str, dtype: torch.dtype) -> Any:
    """Makes a buffer of this dtype one number too short."""
    real = getattr(work.DeviceLauncher, name)

    def less(self: Any, given: Any, *rest: Any) -> Tensor:
        if name == "upload":
            return real(self, given.flatten()[:-1].clone() if given.dtype == dtype else given)
        return real(self, given - (rest[0] == dtype), *rest)

    return mock.patch.object(work.DeviceLauncher, name, less)


M, V, SEVERAL = [(33, 17)], [(7,)], [(300, 24)]
AS_ALIGNED = mock.patch.object(work, "by_alignment", return_value=[(True, [0])])
ASAN: dict[str, tuple[Any, Problem]] = {
    "an element too many": (one_more(-1), Problem(ADAMW, V)),
    "an element after a whole vector": (one_more(-1), Problem(ADAMW, [(16,)], (BF16,))),
    "an element of a vector": (one_more(-1), Problem(ADAFACTOR, V)),
    "a row too many": (one_more(-2), Problem(ADAFACTOR, M)),
    "a row too many of an aligned matrix": (one_more(-2), Problem(ADAFACTOR, [(32, 16)])),
    "a column too many": (one_more(-1), Problem(ADAFACTOR, M)),
    "a matrix too many": (one_more(-3), Problem(ADAFACTOR, [(3, 5, 7)])),
    "a sum too few": (shorter("scratch", F64), Problem(ADAFACTOR, M)),
    "a column's sum too few": (shorter("scratch", F32), Problem(ADAFACTOR, SEVERAL)),
    "an entry too few": (shorter("upload", torch.int32), Problem(ADAFACTOR, M)),
    "a cut too few": (shorter("upload", torch.int64), Problem(ADAFACTOR, M)),
    "no alignment": (AS_ALIGNED, Problem(ADAFACTOR, [(32, 16)], offset=1)),
}


def run(job: str, library: Path, problems: list[Problem]) -> None:
    if job in ASAN:
        fault, problem = ASAN[job]
        with fault:
            problem.run("simcuda")
        return
    if job.isdigit():  # a number in the sources that cuda/test_sanitized.py weakened
        ctypes.c_int.in_dll(ctypes.CDLL(str(library)), "fusedstep_planted").value = int(job)
    for problem in problems:
        problem.run("simcuda")


def in_a_process(job: Callable[[], None]) -> tuple[int, str]:
    """Runs a job in a forked process. Returns its exit code and its stderr."""
    with tempfile.TemporaryFile("w+") as log:
        child = os.fork()
        if child == 0:
            os.dup2(log.fileno(), 2)
            try:
                job()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        log.seek(0)
        return os.waitstatus_to_exitcode(status), log.read()


@contextmanager
def simulator(library: Path) -> Iterator[Any]:
    made = simcuda.load(library, cuda_on_ptx.NAME)
    unit_sizes = replace(SMALL_UNITS, update_elements=16384, least_update_elements=16384)
    with (
        mock.patch.object(cuda_on_ptx, "simulated", return_value=made),
        mock.patch.object(cuda, "UNIT_SIZES", unit_sizes),
        cuda_on_ptx.on_simulator() as settings,
    ):
        yield settings


def main(library: Path, problems: list[Problem], jobs: list[str]) -> None:
    torch.set_num_threads(1)
    with simulator(library) as settings:
        settings.resident(BLOCKS)
        for job in jobs:
            code, report = in_a_process(lambda job=job: run(job, library, problems))
            print(json.dumps([job, code, report[:6000]]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), LISTS[sys.argv[2]], sys.argv[3:])
