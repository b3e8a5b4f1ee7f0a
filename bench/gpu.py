"""`make gpu`: what needs a GPU, once: build, facts, tests, compute-sanitizer, benchmarks, profile.

It takes the Python it runs under, with the torch, Triton and nvcc that are there, and downloads
nothing. A part that fails or runs out of time does not keep the later ones from running.
"""

import argparse
import importlib.util
import os
import shutil
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

from bench.assemble import assemble
from bench.parts import ROOT, Parts, program

KINDS = ("", "_graphs", "_budgets", "_sizes", "_accumulate")
TESTS = [f"tests/test_gpu{kind}.py" for kind in KINDS]
BACKENDS = ("cuda", "triton")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
PARTS = ("facts", "tests", "sanitizer", "bench", "waves", "memory", "scaling", "train", "profile")
# Seconds: together twenty minutes. What a part has measured when its time is over is kept.
LIMITS = {
    **{"build": 180, "facts": 50, "tests": 300, "sanitizer": 140, "bench": 310, "waves": 40},
    **{"memory": 40, "scaling": 40, "train": 60, "profile": 40},
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench.gpu", description=__doc__)
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    add("--out", type=Path, help="default: bench/results/DATE-GPU")
    add("--workers", type=int, default=12, help="processes of the tests, if pytest-xdist is there")
    for name, seconds in LIMITS.items():
        add(f"--{name}-seconds", type=int, default=seconds)
    return parser.parse_args()


def no_gpu() -> str:
    """Empty if torch finds a GPU, else the reason."""
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
    if importlib.util.find_spec("xdist"):  # compiling Triton's kernels is most of the time
        command += ["-n", str(max(1, min(workers, os.cpu_count() or 1)))]
    if importlib.util.find_spec("pytest_timeout"):  # a kernel may wait for ever
        command += ["--timeout=200", "--timeout-method=thread"]
    parts.run("tests", command, seconds)


def sanitizer(parts: Parts, seconds: float) -> None:
    checker = program("compute-sanitizer")
    if checker is None:
        parts.note("sanitizer", "FAILED: no compute-sanitizer on PATH or in CUDA_HOME/bin")
        return
    # Without torch's caching every tensor is an allocation of its own: accesses beyond its end are
    # seen, and none finds what an earlier tensor left there.
    own = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    end = time.monotonic() + seconds
    checks = []
    for backend in BACKENDS:
        # Compiles what the tests before have not left in Triton's cache.
        step = [sys.executable, "-m", "bench.small_step", "--backend", backend]
        if parts.run(f"small-step-{backend}", step, seconds / 4, **own):
            checks += [(f"{tool}-{backend}", tool, step) for tool in TOOLS]
    for number, (name, tool, step) in enumerate(checks):
        share = (end - time.monotonic()) / (len(checks) - number)
        command = [checker, "--tool", tool, "--error-exitcode", "9", *step]
        parts.run(name, command, max(share, 1.0), **own)


def measure(parts: Parts, name: str, seconds: float, *words: str) -> None:
    """One of bench's commands, on the GPU, into the folder of the results."""
    command = [sys.executable, "-m", f"bench.{name}", "--device", "cuda", *words]
    parts.run(name, [*command, "--out", os.path.relpath(parts.out, ROOT)], seconds)


def waves(parts: Parts, seconds: float) -> None:
    """Matrices in one launch, which are off until a measurement says otherwise."""
    from bench.providers import OURS, OURS_TRITON, RULES

    race = [sys.executable, "-m", "bench.step", "--device", "cuda"]
    race += ["--out", os.path.relpath(parts.out / "waves", ROOT), "--providers", OURS, OURS_TRITON]
    race += ["--lists", "llama-1b", "4096x4096", "--dtypes", "bfloat16"]
    race += ["--rules", *(rule for rule in RULES if rule.startswith("adafactor"))]
    on = {f"FUSEDSTEP_{backend.upper()}_WAVES": "1" for backend in BACKENDS}
    parts.run("waves", race, seconds, **on)


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
    parts = Parts(out)
    assemble(parts, asked.build_seconds)
    stages = {
        "facts": lambda: facts(parts, asked.facts_seconds),
        "tests": lambda: tests(parts, asked.tests_seconds, asked.workers),
        "sanitizer": lambda: sanitizer(parts, asked.sanitizer_seconds),
        "bench": lambda: measure(parts, "step", asked.bench_seconds),
        "waves": lambda: waves(parts, asked.waves_seconds),
        "memory": lambda: measure(parts, "memory", asked.memory_seconds),
        "scaling": lambda: measure(parts, "scaling", asked.scaling_seconds, "--quick"),
        "train": lambda: measure(parts, "train", asked.train_seconds, "--all"),
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
