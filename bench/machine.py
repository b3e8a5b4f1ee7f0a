"""The name of this machine, and what is installed on it."""

import os
import platform
import subprocess
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def cpu_name() -> str:
    """The model, and the instruction set that our C++ module uses: some models do not say more."""
    from fusedstep import native

    return cpu_model() if native.module is None else f"{cpu_model()} {native.module.active_level()}"


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def installed(package: str) -> str:
    """The version of a package, which may also be on the path without being installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        try:
            return str(import_module(package).__version__)
        except (ImportError, AttributeError):
            return "not installed"


def commit() -> str | None:
    """The commit, marked if tracked files differ from it. FUSEDSTEP_COMMIT names the commit of a
    copy without history."""
    named = os.environ.get("FUSEDSTEP_COMMIT")
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        result = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return named
    return result.stdout.strip() or named
