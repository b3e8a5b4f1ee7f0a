"""Executes PTX kernels on the CPU, one numpy lane a thread, and faults where a GPU might not."""

from .faults import Fault
from .machine import run
from .memory import Memory
from .parse import Kernel

__all__ = ["Fault", "Kernel", "Memory", "run"]
