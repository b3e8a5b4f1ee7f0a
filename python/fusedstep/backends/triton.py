"""The Triton backend for GPU tensors: says whether it can run here; `kernels/` does the work.

The first plan that needs Triton imports it and the kernels. With TRITON_INTERPRET=1 the kernels run
on CPU tensors, slowly, for debugging.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
from typing import Any

import torch

from ..gpu.interpreter import is_interpreted
from ..gpu.tables import GPUS
from ..plan.bucket import Bucket
from ..plan.launcher import Backend, Launcher
from .reference import flat_launcher

OLDEST = (3, 4)  # the oldest version that we compiled the kernels with


class TritonBackend(Backend):
    """The kernels of `fusedstep.kernels`."""

    name = "triton"

    def why_absent(self) -> str:
        reason = why_not_installed()
        if not reason and not is_interpreted() and not _gpus():
            reason = f"no GPU: torch finds no {' and no '.join(GPUS)} device"
        return reason

    def devices(self) -> tuple[str, ...]:
        return ("cpu",) if is_interpreted() else GPUS

    def describe(self) -> str:
        if is_interpreted():
            return f"Triton {_version()}, interpreted on the CPU (TRITON_INTERPRET is set)"
        modules = [torch.get_device_module(kind) for kind in _gpus()]
        names = {m.get_device_name(index) for m in modules for index in range(m.device_count())}
        return f"Triton {_version()}, on {', '.join(sorted(names))}"

    def prepare(self, bucket: Bucket) -> Launcher:
        if bucket.mode == "flat":
            return flat_launcher(self, bucket)
        kernels: Any = importlib.import_module("fusedstep.kernels.launch")
        launcher: Launcher = kernels.TritonLauncher(self, bucket)
        return launcher


@functools.cache
def why_not_installed() -> str:
    """Empty if a Triton that runs the kernels is installed, else the reason."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: install the one that belongs to your torch"
    numbers = tuple(map(int, re.findall(r"\d+", _version())[:2]))
    if numbers < OLDEST:
        return f"Triton {_version()} is older than {OLDEST[0]}.{OLDEST[1]}: install a newer torch"
    return ""


def _version() -> str:
    """Read from the module: the distributions for ROCm and XPU have other names."""
    return str(importlib.import_module("triton").__version__)


def _gpus() -> list[str]:
    return [kind for kind in GPUS if torch.get_device_module(kind).is_available()]
