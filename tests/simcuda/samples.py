"""Builds the sample kernels and launches them, in this process or in one of their own.

python -m tests.simcuda.samples LIBRARY LAUNCHES. LAUNCHES is JSON: a list of arguments for
`launch`, where "x", "out" and "counters" are numbers of elements, with "seed" and "resident". That
process does not import torch, so that it starts in less than a second under a sanitizer.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import build, load, run_python
from .build import HERE


def built(variant: str) -> Path:
    sources = [HERE / "samples.cu", HERE / "samples_bindings.cpp"]
    defines = ["SAMPLES_MODULE=_samples"]
    return build("_samples", sources, variant=variant, defines=defines)


def launch(
    samples: Any, name: str, x: Any = (), out: int = 0, counters: int = 0, **options: int
) -> Any:
    """Launches a kernel and returns `out` and `counters`."""
    import torch

    x = torch.as_tensor(x, dtype=torch.float32)
    written, counted = torch.full((out,), -1.0), torch.zeros(counters, dtype=torch.int32)
    places = {"x": x.data_ptr(), "out": written.data_ptr(), "counters": counted.data_ptr()}
    assert samples.launch(name, **places, **options) == ""
    return written, counted


def run_launches(variant: str, launches: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    arguments = [str(built(variant)), json.dumps(launches)]
    return run_python(variant, ["-m", f"{__package__}.samples", *arguments])


def memory(elements: int, kind: type[ctypes._SimpleCData[Any]]) -> int:
    """The address of zeros from calloc, whose end ASan knows."""
    calloc = ctypes.CDLL(None).calloc
    calloc.restype = ctypes.c_void_p
    return int(calloc(ctypes.c_size_t(elements), ctypes.c_size_t(ctypes.sizeof(kind))))


def main(library: str, launches: list[dict[str, Any]]) -> None:
    module, controls = load(Path(library), "_samples")
    for launch in launches:
        controls.seed(launch.pop("seed", 0))
        controls.resident(launch.pop("resident", 0))
        for name in ("x", "out"):
            launch[name] = memory(launch.get(name, 0), ctypes.c_float)
        launch["counters"] = memory(launch.get("counters", 0), ctypes.c_int)
        print(module.launch(**launch) or "done")


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
