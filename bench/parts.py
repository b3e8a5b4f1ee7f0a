"""The parts of `make gpu`: one command after another, each with a time limit and a log file."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "gpu"
LAST_WORDS = 20  # seconds in which an interrupted part may save what it has


def program(name: str, *more: Path) -> str | None:
    """Where a program is: beside this Python, on PATH, in the CUDA toolkit, or in `more`."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [Path(sys.executable).parent, *map(Path, os.environ.get("PATH", "").split(":"))]
    folders += [Path(home) / "bin" for home in homes if home] + list(more)
    return shutil.which(name, path=os.pathsep.join(map(str, folders)))


class Parts:
    """What was run, and how it went. A part that fails or runs out of time stops no other part."""

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
        return self.run_all(name, [command], seconds, **env)

    def run_all(self, name: str, commands: list[list[str]], seconds: float, **env: str) -> bool:
        """Runs several commands as one part, up to the first that does not pass."""
        begin, how = time.monotonic(), "passed"
        for command in commands:
            left = max(1.0, begin + seconds - time.monotonic())
            how = self._run(name, command, left, env)
            if how != "passed":
                break
        self.note(name, how, time.monotonic() - begin)
        return how == "passed"

    def _run(self, name: str, command: list[str], seconds: float, env: dict[str, str]) -> str:
        print(f"\n== {name}: {' '.join(command)} (at most {seconds:.0f} s)", flush=True)
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
            except (
                BaseException
            ):  # the command has a session of its own: no signal to us reaches it
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
        status = process.wait()
        copying.join(LAST_WORDS)
        return late or ("passed" if status == 0 else f"FAILED with status {status}")

    def note(self, name: str, how: str, seconds: float = 0.0) -> None:
        self.results.append((name, how, seconds))
        print(f"== {name}: {how} ({seconds:.0f} s)", flush=True)

    def summary(self) -> str:
        """A line for each part, and at the end the parts that did not pass."""
        width = max(len(name) for name, _, _ in self.results)
        lines = [f"  {name:{width}} {spent:5.0f} s  {how}" for name, how, spent in self.results]
        if self.unpassed():
            lines.append(f"NOT PASSED: {', '.join(self.unpassed())}")
        return "\n".join(lines)

    def unpassed(self) -> list[str]:
        return [name for name, how, _ in self.results if not how.startswith(("passed", "skipped"))]

    def _copy(self, process: subprocess.Popen[str], name: str) -> None:
        with open(self.out / f"{name}.txt", "a") as log:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                log.write(line)
