"""What the numbers depend on: machine, threads, versions, commit and command line."""

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def commit() -> str | None:
    """The checkout's commit, with a mark if tracked files differ from it."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        said = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip() or None


def environment(command: str) -> dict[str, str | int | None]:
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": installed("transformers"),
        "fusedstep": installed("fusedstep"),
        "fusedstep_backend": os.environ.get("FUSEDSTEP_BACKEND", "auto"),
        "commit": commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command,
    }


def headline(facts: dict[str, str | int | None], copy_bytes_a_second: float) -> str:
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads, "
        f"copy {copy_bytes_a_second / 1e9:.1f} GB/s; "
        f"Python {facts['python']}, torch {facts['torch']}, transformers {facts['transformers']}, "
        f"fusedstep {facts['fusedstep']} (backend {facts['fusedstep_backend']}, "
        f"commit {str(facts['commit'] or 'unknown')[:12]}); {facts['date']}"
    )
