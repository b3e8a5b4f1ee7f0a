"""Prints csrc/cuda/cut.h from `fusedstep.gpu.cut`."""

from __future__ import annotations

import inspect
import re
import textwrap

from ..gpu import cut
from .text import camel

HEADER = """\
// How tensors are cut into work for a GPU. GENERATED from python/fusedstep/gpu/cut.py by
// `make rules`: do not edit.
// clang-format off
#pragma once

#include <cstdint>

namespace fusedstep::cuda {
"""

CONSTANTS = {
    "kChunk": (cut.CHUNK, "elements in a unit of an elementwise rule"),
    "kGradientUnit": (cut.GRADIENT_UNIT, "elements of a gradient in a unit of its norm"),
    "kTinyElements": (cut.TINY_ELEMENTS, "at most, of a matrix that one thread takes"),
    "kTinyMatrices": (cut.TINY_MATRICES, "in a unit"),
    "kVectorUnit": (cut.VECTOR_UNIT, "elements of a vector in a unit"),
}


def cut_header() -> str:
    """The whole text of csrc/cuda/cut.h."""
    notes = dict(re.findall(r"^    (\w+): int = 0  # (.+)$", inspect.getsource(cut.Cut), re.M))
    fields = [f"  int64_t {f};" + (f"  // {notes[f]}" if f in notes else "") for f in cut.FIELDS]
    parts = [
        HEADER,
        *(f"constexpr int {n} = {value};  // {why}" for n, (value, why) in CONSTANTS.items()),
        "",
        "// Kinds of work; Python uses the same numbers.",
        "enum class Unit : int {",
        *(f"  k{camel(name)}," for name in cut.UNITS),
        "};",
        "constexpr const char* kUnitNames[] = {",
        *(f'    "{name}",' for name in cut.UNITS),
        "};",
        "",
        *(f"// {line}" for line in textwrap.wrap(" ".join((cut.Cut.__doc__ or "").split()), 98)),
        "struct Cut {",
        *fields,
        "};",
        "",
        "}  // namespace fusedstep::cuda",
        "",
    ]
    return "\n".join(parts)
