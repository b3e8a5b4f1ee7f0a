"""Loads the C++ module, or says why it is absent. torch comes first: it has the thread pool."""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch  # noqa: F401

from .rules.fingerprint import fingerprint


def why_stale(built: Any) -> str:
    """An error message if a module was built from other rules than this package's, else empty.
    Such a module would run the wrong rule."""
    if getattr(built, "FINGERPRINT", None) == fingerprint():
        return ""
    return (
        f"{built.__name__} was built from other update rules than those of the package: build it "
        "again (make build, or pip install again)"
    )


module: Any = None
reason = ""
try:
    module = importlib.import_module("fusedstep._native")
except ModuleNotFoundError:
    reason = (
        "the C++ kernels are not built: install CMake and a C++ compiler, then install the package "
        "again (pip install -v shows what was missing)"
    )
except ImportError as error:
    reason = f"the C++ kernels do not load: {error}"
if module is not None:
    reason = why_stale(module)
    module = None if reason else module

# FUSEDSTEP_CPU_LEVEL forces a narrower instruction set, to compare or to debug. A wrong name fails
# at the first step on the CPU, not here, so that `info` still works and shows the error.
level_error = ""
_level = os.environ.get("FUSEDSTEP_CPU_LEVEL")
if module is not None and _level:
    if _level in module.levels():
        module.use_level(_level)
    else:
        level_error = (
            f"FUSEDSTEP_CPU_LEVEL should be one of {', '.join(module.levels())} but is: {_level!r}"
        )
