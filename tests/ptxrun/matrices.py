"""ldmatrix and stmatrix: a warp loads or stores matrices of 16-bit words in shared memory."""

from __future__ import annotations

import numpy as np

from .cta import Cta
from .decode import TYPES, Action, Decoder, instruction
from .faults import Fault
from .places import locate, place


@instruction("ldmatrix", "stmatrix")
def matrix(d: Decoder) -> Action:
    """Each matrix is 8x8. Lanes 8i to 8i+7 hold the addresses of the rows of matrix i."""
    loads, transposed = d.opcode == "ldmatrix", d.take("trans") is not None
    count = d.take("x1", "x2", "x4")
    known = [d.take("sync"), d.take("aligned"), d.take("m8n8"), d.take("shared", "shared::cta")]
    if None in known or count is None or d.type().name != "b16":
        raise d.unknown()
    matrices = int(count[1])
    d.finish(2)
    registers = d.members(0 if loads else 1)
    if len(registers) != matrices:
        raise d.unknown()
    numbers = [d.target(r, 32) if loads else d.source(r, TYPES["b32"]) for r in registers]
    rows = place(d, 1 if loads else 0, "shared", 16)
    half = place(d, 1 if loads else 0, "shared", 2)
    lane = np.arange(32)
    # A thread's register holds two neighbours in a row, or in a column if transposed.
    pair, line = lane % 4 * 2, lane // 4
    row = np.stack([pair, pair + 1], 1) if transposed else np.stack([line, line], 1)
    column = np.stack([line, line], 1) if transposed else np.stack([pair, pair + 1], 1)

    def action(cta: Cta) -> None:
        if cta.active != cta.threads or cta.threads % 32:
            raise Fault("a matrix access needs whole warps")
        _, addresses = locate(cta, rows, cta.all_lanes)
        warps = addresses.reshape(-1, 32)
        for index, number in enumerate(numbers):
            starts = warps[:, 8 * index : 8 * index + 8]
            cta.shared.check(starts.reshape(-1), 16, cta.all_lanes, cta.shared.size)
            offsets = (starts[:, row] + 2 * column).reshape(cta.threads, 2)
            for part in range(2):
                each = offsets[:, part]
                if loads:
                    cta.shared_races.read(each, half.width, cta.all_lanes)
            if loads:
                words, unknown = cta.shared.load(offsets // 2, 2)
                cta.write_bits(
                    number, words.view(np.uint32).reshape(-1), unknown.view(np.uint32).reshape(-1)
                )
                continue
            words = cta.registers[number].view(np.uint16).reshape(-1, 2)
            unknown = cta.undefined.get(number, np.zeros(cta.threads, np.uint32))
            for part in range(2):
                raw = np.ascontiguousarray(words[:, part]).view(np.uint8).reshape(-1, 2)
                cta.shared_races.write(offsets[:, part], half.width, cta.all_lanes, raw)
            cta.shared.store(offsets // 2, 2, words, unknown.view(np.uint16).reshape(-1, 2))

    return action
