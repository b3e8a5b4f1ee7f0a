"""A simulator of CUDA on the CPU: g++ compiles the kernels' own sources, fibers are the threads."""

from .build import VARIANTS, build, load
from .sanitized import run_python

__all__ = ["VARIANTS", "build", "load", "run_python"]
