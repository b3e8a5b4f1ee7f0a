"""Steps of the CUDA backend on the CUDA simulator: the kernels' sources, built by g++."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fusedstep.backends import cuda
from fusedstep.gpu.unit_sizes import Height
from tests import simcuda
from tests.ptxrun.mangled import parse
from tests.support.cases import Params, assert_same
from tests.support.cuda_compiled import label
from tests.support.cuda_on_ptx import CSRC, NAME
from tests.support.problems import Problem, placed
from tests.support.rule_cases import is_factored

# Small units, as if matrices were larger: 8 rows of 256 columns, or more rows of fewer columns.
SMALL_UNITS = replace(cuda.UNIT_SIZES, unit=Height(8, 256), update_elements=2048)


# From torch 2.10 on.
GRADIENTS_HAVE_ANY_DTYPE = hasattr(torch.Tensor, "grad_dtype")


def library(variant: str = "plain", csrc: Path = CSRC) -> Path:
    """The backend's module, built from the kernels in `csrc`."""
    sources = [csrc / "cuda" / "bindings.cpp", *sorted((csrc / "cuda").glob("*.cu"))]
    defines = [f"FUSEDSTEP_CUDA_MODULE={NAME}"]
    return simcuda.build(NAME, sources, variant=variant, include=[csrc], defines=defines)


def kernels(built: Path) -> set[str]:
    """The labels of all kernels in a library."""
    command = ["nm", "-D", "--defined-only", str(built)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = [f"9fusedstep4cuda{len(k)}{k}I" for k in ("elementwise", "phase")]
    symbols = {line.split()[-1] for line in listed.splitlines()}
    return {label(parse(symbol)) for symbol in symbols if any(name in symbol for name in names)}


def is_stored(name: str) -> bool:
    """Whether a kernel, by its label, knows other ways of storage than dtypes."""
    return not {"noisy", "rest16", "rest8", "stored", "int8"}.isdisjoint(name.split()[1].split("/"))


def launched(settings: Any) -> dict[str, int]:
    """How often each kernel was launched, by its label."""
    return {label(parse(symbol)): count for symbol, count in settings.launches().items()}


def bfloat16_gradients(optimizer: Any, params: Params, step: int) -> None:
    """Rounds the gradients. Those of float32 parameters are bfloat16 then; a float64 run keeps its
    dtypes. For `Problem.prepare`, if GRADIENTS_HAVE_ANY_DTYPE."""
    for param in params:
        assert param.grad is not None
        rounded = param.grad.bfloat16()
        param.grad_dtype = None  # any
        param.grad = placed(rounded if param.dtype == torch.float32 else rounded.to(param.dtype))


def check(problem: Problem) -> None:
    """Asserts that results are the reference's bits, or within the bound for factored rules."""
    found, reference = problem.run("simcuda"), problem.run("reference")
    if is_factored(problem.case):
        problem.assert_near(found, reference, problem.run("reference", exact=True))
    else:
        assert_same(*found, *reference)
