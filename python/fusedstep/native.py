"""The C++ module, or the reason why it is absent. torch comes first: it brings the thread pool."""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch  # noqa: F401

from .rules.fingerprint import fingerprint


def why_stale(built: Any) -> str:
    """Empty, or that a module was built from other rules than those of this package: it would take
    one rule for another."""
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
except ImportError as error:
    reason = f"the C++ module is not built or does not load: {error}"
if module is not None:
    reason = why_stale(module)
    module = None if reason else module

if module is not None and os.environ.get("FUSEDSTEP_CPU_LEVEL"):
    # Asks for a narrower instruction set than the machine has, to compare or to debug.
    if os.environ["FUSEDSTEP_CPU_LEVEL"] not in module.levels():
        raise ValueError(
            f"FUSEDSTEP_CPU_LEVEL should be one of {', '.join(module.levels())} "
            f"but is: {os.environ['FUSEDSTEP_CPU_LEVEL']!r}"
        )
    module.use_level(os.environ["FUSEDSTEP_CPU_LEVEL"])
