"""Simulates CUDA on the CPU: g++ compiles the kernels' own sources, and each thread is a fiber."""

from .build import VARIANTS, build, load
from .sanitized import run_python

__all__ = ["VARIANTS", "build", "load", "run_python"]
