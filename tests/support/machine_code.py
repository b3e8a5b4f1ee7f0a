"""The hot loop of a kernel, in NVIDIA's machine code as Triton's cuobjdump prints it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass

INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+([^;]*);", re.MULTILINE)
JUMP = re.compile(r"\bBRA\b[^;]*?0x([0-9a-f]+)")
# LDG.E.128, and LDGSTS.E.BYPASS.128, which loads into shared memory.
WIDE_LOAD = re.compile(r"\bLDG(?:STS)?\.(?:\w+\.)*128\b")


@dataclass(frozen=True)
class Loop:
    """What a loop has. Instructions that run seldom count as well, such as slow quotients."""

    instructions: int = 0
    loads: int = 0  # of 16 bytes
    barriers: int = 0


NO_LOOP = Loop()


def report(cubin: bytes, option: str) -> str:
    """What cuobjdump says about machine code."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def hot_loop(cubin: bytes) -> Loop:
    """The inner loop with the most loads of 16 bytes; NO_LOOP if none has any."""
    code = [
        (int(address, 16), text) for address, text in INSTRUCTION.findall(report(cubin, "-sass"))
    ]
    places = {address: place for place, (address, _) in enumerate(code)}
    ends = [(place, JUMP.search(text)) for place, (_, text) in enumerate(code)]
    loops = [(places.get(int(jump[1], 16), place), place) for place, jump in ends if jump]
    loops = [(first, last) for first, last in loops if first < last]
    inner = [
        (a, b) for a, b in loops if not any(a <= c and d <= b for c, d in loops if (c, d) != (a, b))
    ]
    counted = [_loop([text for _, text in code[a : b + 1]]) for a, b in inner]
    return max((loop for loop in counted if loop.loads), key=_order, default=NO_LOOP)


def _loop(texts: list[str]) -> Loop:
    barriers = sum("BAR.SYNC" in text for text in texts)
    return Loop(len(texts), sum(bool(WIDE_LOAD.search(text)) for text in texts), barriers)


def _order(loop: Loop) -> tuple[int, int]:
    return loop.loads, -loop.instructions
