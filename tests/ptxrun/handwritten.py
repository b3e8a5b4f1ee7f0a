"""Helpers for tests: kernels of a few lines of PTX, launched on numpy arrays."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np

from .machine import run
from .memory import Memory
from .parse import Kernel
from .tables import Case, from_bits, to_bits, width

# TID puts the thread, its CTA and the CTA's size in %r0 to %r2. CELL also puts the address of the
# thread's word of x in %d0.
TID = "mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x;\n"
CELL = TID + "mad.lo.u32 %r3, %r1, %r2, %r0; mad.wide.u32 %d0, %r3, 4, %x;\n"
BUFFER = ".shared .align 16 .b8 buffer[256];"

LETTER = {1: "p", 16: "h", 32: "r", 64: "d"}


def kernel_of(body: str, params: str = "", before: str = "") -> Kernel:
    """A kernel with registers of every width; %name holds the 64-bit parameter `name`."""
    declared = ", ".join(f".param .u64 {name}" for name in params.split())
    loads = "".join(f"ld.param.u64 %{name}, [{name}];\n" for name in params.split())
    names = "".join(f".reg .b64 %{name};\n" for name in params.split())
    registers = ".reg .pred %p<9>, q; .reg .b16 %h<9>, t0, t1; .reg .b32 %r<40>; .reg .b64 %d<40>;"
    return Kernel(
        f".version 8.7\n.target sm_90a\n.address_size 64\n{before}\n"
        f".visible .entry k({declared})\n{{\n{registers}\n{names}{loads}{body}\nret;\n}}\n"
    )


def launch(
    kernel: Kernel,
    grid: int,
    threads: int,
    schedule: int | None = None,
    shared: int = 0,
    **arrays: Any,
) -> Counter[str]:
    """Runs the kernel with the addresses of the arrays as parameters, in this order."""
    memory = Memory()
    for name, array in arrays.items():
        memory.add(array, name)
    pointers = [np.uint64(array.ctypes.data) for array in arrays.values()]
    return run(kernel, grid, threads, pointers, memory, shared, schedule)


def operand(place: int, kind: str) -> str:
    return f"%{LETTER[width(kind)]}{place}"


def storage(kind: str) -> str:
    return f"u{max(width(kind), 8) // 8}"


def fetch(place: int, kind: str) -> str:
    """PTX that loads the operand at this place from its array, one element per thread."""
    size = max(width(kind), 8) // 8
    address = f"mad.wide.u32 %d9, %r9, {size}, %{'abc'[place - 1]};\n"
    if kind == "pred":
        return address + f"ld.global.u8 %h8, [%d9]; setp.ne.u16 %p{place}, %h8, 0;\n"
    return address + f"ld.global.b{size * 8} {operand(place, kind)}, [%d9];\n"


def instruction_kernel(case: Case) -> Kernel:
    """out[thread] = instruction(a[thread], b[thread], c[thread])."""
    kinds = case.types.split()
    names = {"DABC"[place]: operand(place, kind) for place, kind in enumerate(kinds)}
    text = re.sub(r"\b[DABC]\b", lambda match: names[match[0]], case.text)
    text += "" if text.endswith("}") else ";"
    size = max(width(kinds[0]), 8) // 8
    store = f"mad.wide.u32 %d9, %r9, {size}, %out;\n"
    if kinds[0] == "pred":
        store += "selp.u16 %h8, 1, 0, %p0; st.global.u8 [%d9], %h8;\n"
    else:
        store += f"st.global.b{size * 8} [%d9], {operand(0, kinds[0])};\n"
    fetches = "".join(fetch(place, kind) for place, kind in enumerate(kinds) if place)
    params = " ".join(["out", *"abc"[: len(kinds) - 1]])
    return kernel_of(f"mov.u32 %r9, %tid.x;\n{fetches}{text}\n{store}", params)


def wanted_bits(case: Case, words: tuple[int, ...]) -> int | None:
    """The word that the oracle expects, or None if it divides by zero."""
    result, *kinds = case.types.split()
    try:
        return to_bits(case.want(*map(from_bits, words, kinds)), result)
    except ZeroDivisionError:
        return None
