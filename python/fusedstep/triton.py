"""The Triton backend for GPU tensors: says whether it can run here; `kernels/` does the work.

Triton and the kernels are imported by the first plan that needs them. With TRITON_INTERPRET=1 they
run on CPU tensors, slowly, for those who want to look into them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import re

import torch
from torch import Tensor

from .gpu.tables import GPUS
from .plan import Bucket

name = "triton"
OLDEST = (3, 4)  # that the kernels were compiled with


def why_absent() -> str:
    """Empty if the backend can run here, else the reason."""
    reason = _why_not_installed()
    if not reason and not _is_interpreted() and not _gpus():
        reason = f"no GPU: torch finds no {' and no '.join(GPUS)} device"
    return reason


@functools.cache
def _why_not_installed() -> str:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: install the one that belongs to your torch"
    numbers = tuple(map(int, re.findall(r"\d+", _version())[:2]))
    if numbers < OLDEST:
        return f"Triton {_version()} is older than {OLDEST[0]}.{OLDEST[1]}: install a newer torch"
    return ""


def _version() -> str:
    """The module's own: its distributions for ROCm and XPU have other names."""
    return str(importlib.import_module("triton").__version__)


def _gpus() -> list[str]:
    return [kind for kind in GPUS if torch.get_device_module(kind).is_available()]


def _is_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def devices() -> tuple[str, ...]:
    return ("cpu",) if _is_interpreted() else GPUS


def about() -> str:
    """What it runs on, in a line."""
    if _is_interpreted():
        return f"Triton {_version()}, interpreted on the CPU (TRITON_INTERPRET is set)"
    modules = [torch.get_device_module(kind) for kind in _gpus()]
    names = {m.get_device_name(index) for m in modules for index in range(m.device_count())}
    return f"Triton {_version()}, on {', '.join(sorted(names))}"


def prepare(bucket: Bucket) -> None:
    """Cuts the bucket's tensors into work lists on their device. Once for each plan."""
    importlib.import_module("fusedstep.kernels.launch").prepare(bucket)


def scratch_bytes(bucket: Bucket) -> int:
    return int(importlib.import_module("fusedstep.kernels.launch").scratch_bytes(bucket))


def launch(
    bucket: Bucket, scalars: Tensor, inv_grad_scale: Tensor | None, found_inf: Tensor | None
) -> None:
    """Carries out one step of the bucket; nothing is written if `found_inf` is not zero."""
    run = importlib.import_module("fusedstep.kernels.launch").launch
    run(bucket, scalars, inv_grad_scale, found_inf)
