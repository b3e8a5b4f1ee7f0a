"""Runs Python with a sanitizer loaded before it, for modules of the variants "asan" and "tsan"."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .build import VARIANTS, compiler

# From where Python imports this package.
ROOT = Path(__file__).resolve().parents[__name__.count(".")]
SANITIZER_EXIT_CODE = 66

OPTIONS = {
    # Python itself frees little at its end; what it still holds is no leak of ours.
    "ASAN_OPTIONS": f"detect_leaks=0:exitcode={SANITIZER_EXIT_CODE}",
    "UBSAN_OPTIONS": f"print_stacktrace=1:exitcode={SANITIZER_EXIT_CODE}",
    "TSAN_OPTIONS": f"halt_on_error=1:history_size=4:exitcode={SANITIZER_EXIT_CODE}",
}


def library(name: str) -> str:
    path = subprocess.run(
        [compiler()[0], f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if path == name:
        raise RuntimeError(f"{compiler()[0]} has no {name}")
    return os.path.realpath(path)


def environment(variant: str) -> dict[str, str]:
    """One thread, as OpenMP's barriers are unknown to TSan; and libstdc++ too before Python, or
    ASan does not find what it replaces."""
    result = dict(os.environ, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", **OPTIONS)
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    result["PYTHONPATH"] = os.pathsep.join(path)
    preload = VARIANTS[variant].preload
    if preload:
        result["LD_PRELOAD"] = f"{library(preload)} {library('libstdc++.so.6')}"
    return result


def run_python(
    variant: str, arguments: Sequence[str], timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """`python arguments`: a script, or ["-m", "pytest", ...]. A report's exit code is 66."""
    # TSan wants its memory where a kernel with much address randomization may have put something.
    fixed = ["setarch", "-R"] if variant == "tsan" and shutil.which("setarch") else []
    return subprocess.run(
        [*fixed, sys.executable, *arguments],
        env=environment(variant),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
