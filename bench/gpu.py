"""`make gpu`: what needs a GPU, once: build, facts, tests, compute-sanitizer, benchmark.

It takes the Python it runs under, with the torch and Triton that are there, and downloads nothing.
A part that fails or runs out of time does not keep the later ones from running.
"""

import argparse
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "gpu"
TESTS = ("tests/test_gpu.py", "tests/test_gpu_graphs.py", "tests/test_gpu_budgets.py")
TOOLS = ("memcheck", "racecheck", "initcheck")
# Seconds; all of them are about twenty minutes.
LIMITS = {"build": 150, "tests": 420, "sanitizer": 240, "bench": 400}
WAVES_SECONDS = 90
LAST_WORDS = 20  # seconds for a part that was interrupted, to write down what it has


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench.gpu", description=__doc__)
    add = parser.add_argument
    add("--parts", nargs="+", choices=("facts", "tests", "sanitizer", "bench"))
    add("--out", type=Path, help="default: bench/results/DATE-GPU")
    add("--workers", type=int, default=12, help="processes of the tests, if pytest-xdist is there")
    for name, seconds in LIMITS.items():
        add(f"--{name}-seconds", type=int, default=seconds)
    parser.set_defaults(parts=["facts", "tests", "sanitizer", "bench"])
    return parser.parse_args()


def no_gpu() -> str:
    """Empty if torch finds a GPU, else the reason."""
    if importlib.util.find_spec("torch") is None:
        return f"{sys.executable} has no torch: name another one with PYTHON=..."
    import torch

    return "" if torch.cuda.is_available() else f"torch {torch.__version__} finds none"


class Parts:
    """Runs commands in turn, each with a limit, its output also in a file."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.results: list[tuple[str, str, float]] = []
        self.env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(BUILD), str(ROOT))),
            "PYTHONUNBUFFERED": "1",
            "TRITON_CACHE_DIR": str(BUILD / "triton"),
        }

    def run(self, name: str, command: list[str], seconds: float, **env: str) -> bool:
        print(f"\n== {name}: {' '.join(command)} (at most {seconds:.0f} s)", flush=True)
        begin = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        copying = threading.Thread(target=self._copy, args=(process, name), daemon=True)
        copying.start()
        late = ""
        for limit, then in ((seconds, signal.SIGINT), (LAST_WORDS, signal.SIGKILL)):
            try:
                process.wait(limit)
                break
            except subprocess.TimeoutExpired:
                late = f"out of time after {seconds:.0f} s"
                os.killpg(process.pid, then)
        status = process.wait()
        copying.join(LAST_WORDS)
        how = late or ("passed" if status == 0 else f"FAILED with status {status}")
        self.note(name, how, time.monotonic() - begin)
        return how == "passed"

    def note(self, name: str, how: str, seconds: float = 0.0) -> None:
        self.results.append((name, how, seconds))
        print(f"== {name}: {how} ({seconds:.0f} s)", flush=True)

    def _copy(self, process: subprocess.Popen[str], name: str) -> None:
        with open(self.out / f"{name}.txt", "a") as log:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                log.write(line)


def assemble(parts: Parts, seconds: float) -> None:
    """The package as it would be installed, in a folder of our own: neither write access to
    site-packages nor a setuptools new enough for our pyproject.toml is needed (torch's own index
    brings an old one). The C++ module is optional: without it the host's part of a step is slower.
    """
    package = BUILD / "fusedstep"
    shutil.rmtree(package, ignore_errors=True)
    leave_out = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "python" / "fusedstep", package, ignore=leave_out)
    shutil.copytree(ROOT / "kernels", package / "kernels", ignore=leave_out)
    beside = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    cmake = shutil.which("cmake", path=beside)
    if cmake is None or importlib.util.find_spec("pybind11") is None:
        parts.note("build", "no cmake or no pybind11: the run goes on without the C++ module")
        return
    import pybind11

    native, prefix = str(BUILD / "native"), str(package)
    configure = [
        *(cmake, f"-S{ROOT}", f"-B{native}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"),
        *(f"-DPython3_EXECUTABLE={sys.executable}", f"-DPython_EXECUTABLE={sys.executable}"),
        *(["-GNinja"] if shutil.which("ninja", path=beside) else []),
    ]
    for command in (
        configure,
        [cmake, "--build", native, "--parallel"],
        [cmake, "--install", native, "--prefix", prefix],
    ):
        if not parts.run("build", command, seconds, PATH=beside):
            print("the C++ module was not built: the run goes on without it", flush=True)
            return


def facts(parts: Parts) -> None:
    from bench.machine import commit

    python = sys.executable
    parts.run("facts", ["echo", f"commit {commit() or 'unknown'}"], 10)
    if shutil.which("nvidia-smi"):
        parts.run("facts", ["nvidia-smi"], 60)
    parts.run("facts", [python, "-m", "fusedstep", "info"], 60)


def tests(parts: Parts, seconds: float, workers: int) -> None:
    command = [sys.executable, "-m", "pytest", *TESTS, "-p", "no:cacheprovider", "-rf"]
    command += ["--tb=short", "--durations=15", "--maxfail=40"]
    if importlib.util.find_spec("xdist"):  # compiling the kernels is most of the time
        command += ["-n", str(max(1, min(workers, os.cpu_count() or 1)))]
    if importlib.util.find_spec("pytest_timeout"):  # a kernel may wait for ever
        command += ["--timeout=200", "--timeout-method=thread"]
    parts.run("tests", command, seconds)


def sanitizer(parts: Parts, seconds: float) -> None:
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")] + ["/usr/local/cuda"]
    folders = [os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)]
    program = shutil.which("compute-sanitizer", path=os.pathsep.join(folders))
    if program is None:
        parts.note("sanitizer", "FAILED: no compute-sanitizer on PATH or in CUDA_HOME/bin")
        return
    step = [sys.executable, "-m", "bench.small_step"]
    # Without torch's caching every tensor is an allocation of its own: accesses beyond its end are
    # seen, and none finds what an earlier tensor left there.
    own = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    end = time.monotonic() + seconds
    # Compiles what the tests before have not left in Triton's cache.
    if not parts.run("small-step", step, seconds / 2, **own):
        return
    for number, tool in enumerate(TOOLS):
        share = (end - time.monotonic()) / (len(TOOLS) - number)
        parts.run(tool, [program, "--tool", tool, "--error-exitcode", "9", *step], share, **own)


def main() -> int:
    asked = arguments()
    if reason := no_gpu():
        print(f"make gpu needs a machine with a GPU: {reason}.", file=sys.stderr)
        return 1
    import torch

    from bench.providers import RULES

    name = "-".join(torch.cuda.get_device_name().lower().split())
    day = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    out = (asked.out or ROOT / "bench" / "results" / f"{day}-{name}").resolve()
    out.mkdir(parents=True, exist_ok=True)
    parts = Parts(out)
    assemble(parts, asked.build_seconds)
    if "facts" in asked.parts:
        facts(parts)
    if "tests" in asked.parts:
        tests(parts, asked.tests_seconds, asked.workers)
    if "sanitizer" in asked.parts:
        sanitizer(parts, asked.sanitizer_seconds)
    if "bench" in asked.parts:
        race = [sys.executable, "-m", "bench", "--device", "cuda", "--out", str(out)]
        parts.run("bench", race, asked.bench_seconds)
        # Matrices in one launch are off until a measurement says otherwise.
        race = [*race[:-1], str(out / "waves"), "--providers", "fusedstep", "--lists", "llama-1b"]
        waves = {"FUSEDSTEP_TRITON_WAVES": "1"}
        adafactors = [rule for rule in RULES if rule.startswith("adafactor")]
        parts.run("bench-waves", [*race, "--rules", *adafactors], WAVES_SECONDS, **waves)
    print(f"\nwritten to {out}:")
    for part, how, seconds in parts.results:
        print(f"  {part:10} {seconds:5.0f} s  {how}")
    return int(any(how != "passed" for part, how, _ in parts.results if part != "build"))


if __name__ == "__main__":
    sys.exit(main())
