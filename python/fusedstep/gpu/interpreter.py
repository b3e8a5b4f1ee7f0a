"""Whether Triton interprets the kernels. It decides when it is imported, from the same variable."""

from __future__ import annotations

import os


def is_interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
