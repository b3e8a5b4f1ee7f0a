"""What this machine is called and what is installed on it."""

import os
import platform
import subprocess
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def installed(package: str) -> str:
    """A version, also of a package that lies on the path without having been installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        try:
            return str(import_module(package).__version__)
        except (ImportError, AttributeError):
            return "not installed"


def commit() -> str | None:
    """The checkout's commit, with a mark if tracked files differ from it. A copy without history is
    told its commit by FUSEDSTEP_COMMIT."""
    told = os.environ.get("FUSEDSTEP_COMMIT")
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        said = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return told
    return said.stdout.strip() or told
