"""What the numbers depend on: device, threads, versions, commit and command."""

import os
import platform
from datetime import datetime, timezone

import torch

from bench.devices import Device, Facts
from bench.machine import commit, installed


def environment(command: str, device: Device) -> Facts:
    return {
        **device.facts(),
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


def headline(facts: Facts, copy_bytes_a_second: float | None, device: Device) -> str:
    copy = f", copy {copy_bytes_a_second / 1e9:.1f} GB/s" if copy_bytes_a_second else ""
    return (
        f"{device.title(facts)}{copy}; "
        f"Python {facts['python']}, torch {facts['torch']}, transformers {facts['transformers']}, "
        f"fusedstep {facts['fusedstep']} (backend {facts['fusedstep_backend']}, "
        f"commit {str(facts['commit'] or 'unknown')[:12]}); {facts['date']}"
    )
