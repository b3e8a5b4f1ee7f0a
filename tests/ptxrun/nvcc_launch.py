"""Launches the kernels of samples.cu on numpy arrays."""

from __future__ import annotations

import ctypes
import functools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from .machine import run
from .mangled import Name, parse
from .memory import Memory
from .nvcc import module_of
from .parse import Kernel

SAMPLES = Path(__file__).with_name("samples.cu")


class Task(ctypes.Structure):
    """`samples::Task`."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("more", ctypes.c_void_p),
        ("counters", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("scale", ctypes.c_double),
        ("rows", ctypes.c_int32),
        ("small", ctypes.c_int16),
        ("flag", ctypes.c_uint8),
        ("picks", ctypes.c_int64 * 5),
    )


@functools.cache
def kernel(name: Name) -> Kernel:
    module = module_of(SAMPLES)
    (entry,) = (entry for entry in module.entries if parse(entry) == name)
    return Kernel(module, entry)


def launch(
    name: str,
    grid: int,
    threads: int,
    *template: int | bool | str,
    shared: int = 0,
    schedule: int | None = None,
    rest: tuple[Any, ...] = (),
    **fields: Any,
) -> Counter[str]:
    """Runs samples::name<template>. It may access the arrays among the fields, and nothing else."""
    memory, task = Memory(), Task(scale=1.0)
    for field, value in fields.items():
        if isinstance(value, np.ndarray):
            memory.add(value, field)
            value = value.ctypes.data
        elif field == "picks":
            value = (ctypes.c_int64 * 5)(*value)
        setattr(task, field, value)
    one = kernel(Name(f"samples::{name}", template))
    return run(one, grid, threads, [task, *rest], memory, shared, schedule)
