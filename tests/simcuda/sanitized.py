"""Runs Python with a sanitizer preloaded, for modules of the variants "asan" and "tsan"."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .build import VARIANTS, compiler

# The folder that must be on Python's path to import this package.
ROOT = Path(__file__).resolve().parents[__name__.count(".")]
SANITIZER_EXIT_CODE = 66

OPTIONS = {
    # Python frees little at exit, so leak reports would be about Python and not about us.
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
    """The environment of such a process. One thread, because TSan does not know OpenMP's barriers.
    libstdc++ is preloaded too: without it ASan does not find the functions that it replaces."""
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
    """Runs `python arguments`: a script, or ["-m", "pytest", ...]. After a sanitizer's report the
    exit code is 66."""
    # TSan needs fixed addresses, which address randomization may have taken: setarch turns it off.
    fixed = ["setarch", "-R"] if variant == "tsan" and shutil.which("setarch") else []
    return subprocess.run(
        [*fixed, sys.executable, *arguments],
        env=environment(variant),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
