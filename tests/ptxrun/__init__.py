"""Executes PTX kernels on the CPU, with one numpy lane per thread. It also faults on errors that a
GPU may let pass."""

from .faults import Fault
from .machine import run
from .memory import Memory
from .parse import Kernel

__all__ = ["Fault", "Kernel", "Memory", "run"]
