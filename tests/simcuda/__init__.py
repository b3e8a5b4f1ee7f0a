"""A simulator of CUDA on the CPU: g++ compiles the kernels' own sources, fibers are the threads."""

from simcuda.build import VARIANTS, build, load
from simcuda.sanitized import run_python

__all__ = ["VARIANTS", "build", "load", "run_python"]
