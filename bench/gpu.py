"""`make gpu`: everything that needs a GPU: build, facts, tests, compute-sanitizer, benchmarks,
profile.

It uses the Python that runs it, with its torch and Triton and the machine's nvcc, and downloads
nothing. If a part fails or runs out of time, the later parts still run.
"""

import argparse
import importlib.util
import os
import shutil
import signal
import sys
import time
from datetime import datetime, timezone
from itertools import product
from pathlib import Path

from bench.assemble import assemble
from bench.parts import ROOT, Parts, program

KINDS = ("values", "graphs", "budgets", "sizes", "accumulate")
TESTS = [f"tests/gpu/test_{kind}.py" for kind in KINDS]
BACKENDS = ("cuda", "triton")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")  # the most important ones first
# We check the step alone: processes that Triton starts use no GPU, which a tool calls an error.
# memcheck ignores errors of CUDA's API: one that matters raises in the step, and torch and Triton
# make calls that may fail.
TOOL_OPTIONS = ["--target-processes", "application-only", "--error-exitcode", "9"]
MORE_OPTIONS = {"memcheck": ["--report-api-errors", "no"]}
TERMINATED = 128 + signal.SIGTERM
# We leave out transformers' defaults: they are the Trainer's settings and one more kernel.
SCALED = ("--rules", "adamw", "adafactor-hf-trainer", "adafactor-torch")
# `first` is all that a new kind of GPU should show before anything else.
FIRST = ("facts", "tests", "profile", "experiments", "counters", "sanitizer")
PARTS = (*FIRST, "nccl", "bench", "memory", "scaling", "train")
# What the profiler of the GPU's counters shows of each kernel.
SECTIONS = ("SpeedOfLight", "WarpStateStats", "SchedulerStats", "MemoryWorkloadAnalysis")
# Seconds. A part that runs out of time keeps what it has measured.
LIMITS = {
    "build": 130,  # 98 s on two cores, for three architectures
    "facts": 30,  # three short commands, one of which imports torch
    "tests": 260,  # compiling Triton's kernels, on all cores
    "experiments": 60,  # 34 s on an H200 machine with 16 cores
    "counters": 40,  # 25 s
    # Two steps without it, 10 s each, but 40 s for Triton if no test has compiled its 78 kernels;
    # eight with it, at about 17 s.
    "sanitizer": 170,
    "nccl": 60,  # never run yet: two processes, which load CUDA and make plans
    "bench": 235,  # 48 races at 3 s, and 1.5 s to count each one's launches; copies 5 s
    "memory": 60,  # 13 processes at 5 s
    "scaling": 50,  # 9 curves of 3 sizes at 1.3 s, in one process; copies 5 s
    "train": 60,  # 4 processes of 150 steps, at most 60 ms each
    "profile": 45,  # 12 runs at 3 s in one process
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench.gpu", description=__doc__)
    add = parser.add_argument
    add("--parts", nargs="+", choices=(*PARTS, "first"), default=list(PARTS))
    add("--out", type=Path, help="default: bench/results/DATE-GPU")
    add("--workers", type=int, default=12, help="test processes, if pytest-xdist is installed")
    for name, seconds in LIMITS.items():
        note = "0: use what is in build/gpu" if name == "build" else None
        add(f"--{name}-seconds", type=int, default=seconds, help=note)
    asked = parser.parse_args()
    asked.parts = [own for part in asked.parts for own in (FIRST if part == "first" else (part,))]
    return asked


def no_gpu() -> str:
    """Why there is no GPU; empty if torch finds one."""
    if importlib.util.find_spec("torch") is None:
        return f"{sys.executable} has no torch: name another one with PYTHON=..."
    import torch

    return "" if torch.cuda.is_available() else f"torch {torch.__version__} finds none"


def facts(parts: Parts, seconds: float) -> None:
    from bench.machine import commit

    commands = [["echo", f"commit {commit() or 'unknown'}"]]
    if shutil.which("nvidia-smi"):
        commands.append(["nvidia-smi"])
    if nvcc := program("nvcc"):
        commands.append([nvcc, "--version"])
    parts.run_all("facts", [*commands, [sys.executable, "-m", "fusedstep", "info"]], seconds)


def tests(parts: Parts, seconds: float, workers: int) -> None:
    command = [sys.executable, "-m", "pytest", *TESTS, "-p", "no:cacheprovider", "-rfs"]
    command += ["--tb=short", "--durations=15", "--maxfail=40"]
    if importlib.util.find_spec("xdist"):  # most of the time goes to compiling Triton's kernels
        command += ["-n", str(max(1, min(workers, os.cpu_count() or 1)))]
    if importlib.util.find_spec("pytest_timeout"):  # a kernel may wait for ever
        command += ["--timeout=200", "--timeout-method=thread"]
    # The processes fill all cores. The reference would start threads of its own in each of them.
    parts.run("tests", command, seconds, OMP_NUM_THREADS="1")


def nccl(parts: Parts, seconds: float) -> None:
    """Sharded parameters on two GPUs, whose processes add up their sums by NCCL."""
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        parts.note("nccl", f"skipped: this machine has {count} GPU, and NCCL needs several")
        return
    command = [sys.executable, "-m", "pytest", "tests/distributed/test_placements.py"]
    command += ["-k", "2-processes", "-m", "not slow", "-p", "no:cacheprovider", "--tb=short"]
    parts.run("nccl", command, seconds, FUSEDSTEP_TEST_DEVICE="cuda")


def sanitizer(parts: Parts, seconds: float) -> None:
    checker = program("compute-sanitizer")
    if checker is None:
        parts.note("sanitizer", "FAILED: no compute-sanitizer on PATH or in CUDA_HOME/bin")
        return
    # Without torch's caching allocator each tensor is an allocation of its own. So the tools see
    # accesses beyond its end, and no tensor finds values of an earlier one.
    no_caching = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    end = time.monotonic() + seconds
    steps = {
        backend: [sys.executable, "-m", "bench.small_step", "--backend", backend]
        for backend in BACKENDS
    }
    # These runs also compile what the tests have not left in Triton's cache.
    passed = {
        backend: parts.run(f"small-step-{backend}", step, seconds / 4, **no_caching)
        for backend, step in steps.items()
    }
    checks = [(tool, backend) for tool in TOOLS for backend in BACKENDS if passed[backend]]
    for number, (tool, backend) in enumerate(checks):
        share = (end - time.monotonic()) / (len(checks) - number)
        options = ["--tool", tool, *TOOL_OPTIONS, *MORE_OPTIONS.get(tool, [])]
        command = [checker, *options, *steps[backend]]
        parts.run(f"{tool}-{backend}", command, max(share, 1.0), **no_caching)
    for tool, backend in product(TOOLS, BACKENDS):
        if not passed[backend]:
            parts.note(f"{tool}-{backend}", "FAILED: small-step did not pass")


def measure(parts: Parts, name: str, seconds: float, *words: str) -> None:
    """Runs one of the bench's commands on the GPU."""
    from bench.__main__ import COMMANDS

    command = [sys.executable, "-m", f"bench.{name}", "--device", "cuda"]
    command += [*COMMANDS[name].split(), *words]
    parts.run(name, [*command, "--out", os.path.relpath(parts.out, ROOT)], seconds)


def counters(parts: Parts, seconds: float) -> None:
    """Reads the GPU's counters for each kernel of a step, for both backends."""
    profiler = program("ncu")
    if profiler is None:
        parts.note("counters", "skipped: no ncu")
        return
    options = ["--clock-control", "none", "--kernel-name", "regex:phase", "--launch-skip", "5"]
    options += ["--launch-count", "6", *(word for own in SECTIONS for word in ("--section", own))]
    for backend in BACKENDS:
        command = [profiler, *options, sys.executable, "-m", "bench.first", "--one-step", backend]
        parts.run(f"counters-{backend}", command, seconds / 2)


def main() -> int:
    asked = arguments()
    if reason := no_gpu():
        print(f"make gpu needs a machine with a GPU: {reason}.", file=sys.stderr)
        return 1
    import torch

    name = "-".join(torch.cuda.get_device_name().lower().split())
    day = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    out = (asked.out or ROOT / "bench" / "results" / f"{day}-{name}").resolve()
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # Parts then ends what it runs
    parts = Parts(out)
    if asked.build_seconds > 0:
        assemble(parts, asked.build_seconds)
    out_here = ["--out", os.path.relpath(out, ROOT)]
    stages = {
        "facts": lambda: facts(parts, asked.facts_seconds),
        "tests": lambda: tests(parts, asked.tests_seconds, asked.workers),
        "experiments": lambda: parts.run(
            "experiments",
            [sys.executable, "-m", "bench.first", *out_here],
            asked.experiments_seconds,
        ),
        "counters": lambda: counters(parts, asked.counters_seconds),
        "sanitizer": lambda: sanitizer(parts, asked.sanitizer_seconds),
        "nccl": lambda: nccl(parts, asked.nccl_seconds),
        "bench": lambda: measure(parts, "step", asked.bench_seconds),
        "memory": lambda: measure(parts, "memory", asked.memory_seconds),
        "scaling": lambda: measure(parts, "scaling", asked.scaling_seconds, *SCALED),
        "train": lambda: measure(parts, "train", asked.train_seconds, "--steps", "150"),
        "profile": lambda: parts.run(
            "profile", [sys.executable, "-m", "bench.kernels"], asked.profile_seconds
        ),
    }
    for stage in asked.parts:
        stages[stage]()
    print(f"\nwritten to {out}:\n{parts.summary()}")
    return int(bool(parts.unpassed()))


if __name__ == "__main__":
    sys.exit(main())
