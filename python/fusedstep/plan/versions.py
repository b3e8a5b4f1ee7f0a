"""Tells autograd that a step wrote tensors, as torch.autograd.graph.increment_version does."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .. import native

Increment = Callable[[list[Tensor]], None]


def increment_of(tensors: list[Tensor]) -> Increment:
    """A function that counts a change of `tensors`, or of some of them. It is chosen once for each
    plan: torch's takes 60 ns for each tensor, and that of C++ 7 (AMD EPYC, 2026-11-26)."""
    if not _can_increment() or any(map(Tensor.is_inference, tensors)):
        return torch.autograd.graph.increment_version
    increment: Increment = native.module.increment_versions
    return increment


@cache
def _can_increment() -> bool:
    if native.module is None or not native.module.can_watch():
        return False
    with torch.inference_mode(False), _disable_current_modes():
        sample = torch.zeros(1, device="cpu")
        return bool(native.module.learn_to_increment(_function(), sample))


def _function() -> int:
    """The address of torch::autograd::impl::bump_version(const at::Tensor&), or 0."""
    suffix = "dylib" if sys.platform == "darwin" else "so"
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu.{suffix}"))
        symbol = library["_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE"]
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(symbol, ctypes.c_void_p).value or 0
