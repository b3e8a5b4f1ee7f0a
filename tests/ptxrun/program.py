"""Program: a kernel decoded for a block of threads: its steps and the initial registers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .decode import HANDLERS, WORD, Action, Decoder, Step
from .faults import Fault
from .parse import Kernel
from .syntax import Immediate, Instruction, Label, Operand, Special

if TYPE_CHECKING:
    from .cta import Cta

Array = NDArray[Any]


def refusal(message: str) -> Action:
    """The action of an instruction that was not understood: it faults, but only if executed."""

    def action(cta: Cta) -> None:
        raise Fault(message)

    return action


class Program:
    """A kernel decoded for a number of threads."""

    def __init__(self, kernel: Kernel, block: tuple[int, int, int], dynamic_shared: int) -> None:
        self.kernel, self.block = kernel, block
        self.threads = block[0] * block[1] * block[2]
        most, exactly = (kernel.limits.get(name) for name in ("maxntid", "reqntid"))
        if self.threads > (most or self.threads) or self.threads != (exactly or self.threads):
            raise Fault(
                f"{kernel.name} was compiled for {most or exactly} threads, not for {self.threads}"
            )
        self.shared_bytes = kernel.static_shared
        if dynamic_shared:
            self.shared_bytes = kernel.dynamic_offset + dynamic_shared
        self.local_bytes = -(-kernel.layouts["local"].size // 16) * 16
        self.shared_granule, self.global_granule = 16, 32
        self.requests: Counter[str] = Counter()
        self.counts: list[int] = []
        self._constants: dict[tuple[int, int], int] = {}
        self._specials: dict[str, int] = {}
        self._initial: list[Array] = [
            np.full(self.threads, 0xCDCDCDCDCDCDCDCD & ((1 << width) - 1), WORD[width])
            for width in kernel.register_widths
        ]
        ones = {width: np.full(self.threads, ~WORD[width](0)) for width in WORD}
        self._undefined = {n: ones[width] for n, width in enumerate(kernel.register_widths)}
        self.carry = self._append(np.zeros(self.threads, np.bool_))
        self.steps = [self._decode(instruction) for instruction in kernel.instructions]

    def _append(self, value: Array) -> int:
        self._initial.append(value)
        return len(self._initial) - 1

    def _decode(self, instruction: Instruction) -> Step:
        step = Step(instruction.text)
        if instruction.guard is not None:
            step.guard = instruction.guard.number
            step.guard_negated = instruction.guard.negated
        try:
            handler = HANDLERS.get(instruction.opcode)
            if handler is None:
                raise Fault("instruction not modelled")
            step.action = handler(Decoder(self, instruction, step))
        except Fault as fault:
            step.action = refusal(str(fault))
        return step

    def constant(self, operand: Operand | None, bits: int) -> int:
        """The number of a register that holds a literal or a special register."""
        if isinstance(operand, Special):
            if bits != 32:
                raise Fault(f"{operand.name} has 32 bits")
            if operand.name not in self._specials:
                self._specials[operand.name] = self._append(self._special(operand.name))
            return self._specials[operand.name]
        if not isinstance(operand, Immediate):
            raise Fault(f"operand not understood: {operand}")
        if operand.is_float and bits != operand.float_bits:
            raise Fault(f"literal {operand.text} where {bits} bits are expected")
        value = int(operand.bits != 0) if bits == 1 else operand.bits & ((1 << bits) - 1)
        if (value, bits) not in self._constants:
            self._constants[value, bits] = self._append(np.full(self.threads, value, WORD[bits]))
        return self._constants[value, bits]

    def _special(self, name: str) -> Array:
        thread = np.arange(self.threads, dtype=np.uint32)
        lane = thread % np.uint32(32)
        kind, _, axis = name[1:].partition(".")
        x, y, _z = (np.uint32(size) for size in self.block)
        if kind == "tid":
            return (thread % x, thread // x % y, thread // (x * y))["xyz".index(axis)]
        if kind == "ntid":
            return np.full(self.threads, self.block["xyz".index(axis)], np.uint32)
        if kind in ("ctaid", "nctaid"):
            return np.zeros(self.threads, np.uint32)  # initial_registers fills it in
        bit = np.uint32(1) << lane
        return {
            "laneid": lane,
            "warpid": thread // np.uint32(32),
            "nwarpid": np.full(self.threads, -(-self.threads // 32), np.uint32),
            "lanemask_eq": bit,
            "lanemask_lt": bit - np.uint32(1),
            "lanemask_le": bit | (bit - np.uint32(1)),
            "lanemask_gt": ~(bit | (bit - np.uint32(1))),
            "lanemask_ge": ~(bit - np.uint32(1)),
        }[kind]

    def initial_registers(
        self, position: tuple[int, int, int], grid: tuple[int, int, int]
    ) -> list[Array]:
        """What registers hold when a CTA begins."""
        registers = list(self._initial)
        for name, number in self._specials.items():
            kind, _, axis = name[1:].partition(".")
            if kind in ("ctaid", "nctaid"):
                value = (position if kind == "ctaid" else grid)["xyz".index(axis)]
                registers[number] = np.full(self.threads, value, np.uint32)
        return registers

    def initial_undefined(self) -> dict[int, Array]:
        return dict(self._undefined)

    def begin_counting(self) -> None:
        self.requests = Counter()
        self.counts = [0] * len(self.steps)

    def counted(self) -> Counter[str]:
        """Counts of memory requests, of executed instructions, and of those with each tag."""
        counted = Counter(self.requests)
        for step, executed in zip(self.steps, self.counts, strict=True):
            for tag in ("thread_instructions", *step.tags):
                counted[tag] += executed
        return counted

    def register_name(self, number: int) -> str:
        return self.kernel.register_names.get(number, "a constant")

    def place_of(self, operand: Operand | None) -> int:
        if not isinstance(operand, Label):
            raise Fault("a branch needs a label")
        return self.kernel.labels[operand.name]

    def places_of(self, operand: Operand | None) -> list[int]:
        if not isinstance(operand, Label) or operand.name not in self.kernel.branch_targets:
            raise Fault("an indexed branch needs a table of labels")
        return [self.kernel.labels[name] for name in self.kernel.branch_targets[operand.name]]
