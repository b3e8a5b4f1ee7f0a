"""Decodes instructions into steps: closures over register numbers, made once per kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .faults import Fault
from .syntax import Group, Immediate, Instruction, Operand, Register

if TYPE_CHECKING:
    from .cta import Cta
    from .program import Program

Array = NDArray[Any]
Action = Callable[["Cta"], None]
SINK = -1

WORD = {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


class Type(NamedTuple):
    """A PTX type: the width of its registers, and the numpy type that arithmetic uses."""

    name: str
    bits: int
    view: Any
    parts: int = 1

    @property
    def is_float(self) -> bool:
        return "f" in self.name

    @property
    def is_signed(self) -> bool:
        return self.name[0] == "s"


TYPES = {
    "pred": Type("pred", 1, np.bool_),
    "f16": Type("f16", 16, np.float16),
    "bf16": Type("bf16", 16, np.uint16),
    "f32": Type("f32", 32, np.float32),
    "f64": Type("f64", 64, np.float64),
    "f16x2": Type("f16x2", 32, np.float16, 2),
    "bf16x2": Type("bf16x2", 32, np.uint16, 2),
    "f32x2": Type("f32x2", 64, np.float32, 2),
}
for _bits in (8, 16, 32, 64):
    TYPES[f"b{_bits}"] = Type(f"b{_bits}", _bits, WORD[_bits])
    TYPES[f"u{_bits}"] = Type(f"u{_bits}", _bits, WORD[_bits])
    TYPES[f"s{_bits}"] = Type(f"s{_bits}", _bits, np.dtype(f"i{_bits // 8}").type)


@dataclass
class Step:
    """What the run loop needs to know about one instruction."""

    text: str
    action: Action | None = None
    guard: int | None = None
    guard_negated: bool = False
    flow: str = ""  # branch, switch, exit or barrier
    target: int = 0
    targets: list[int] = field(default_factory=list)  # of a switch, by the value of its index
    index: int = 0  # the register that holds it
    yields: bool = False  # whether other CTAs get a turn before it
    complete: Callable[[Cta], bool] | None = None  # whether all lanes that must meet here are here
    barrier_done: Action | None = None
    tags: list[str] = field(default_factory=list)  # names under which executions are counted


class Decoder:
    """One instruction being decoded. A modifier or operand that its handler does not use is a
    Fault."""

    def __init__(self, program: Program, instruction: Instruction, step: Step) -> None:
        self.program, self.instruction, self.step = program, instruction, step
        self.opcode = instruction.opcode
        self.operands = instruction.operands
        self._words = list(instruction.modifiers)

    def take(self, *options: str) -> str | None:
        """Removes and returns the first modifier that is one of these options, or returns None."""
        for word in self._words:
            if word in options:
                self._words.remove(word)
                return word
        return None

    def take_where(self, accept: Callable[[str], bool]) -> list[str]:
        taken = [word for word in self._words if accept(word)]
        self._words = [word for word in self._words if not accept(word)]
        return taken

    def type(self) -> Type:
        """Removes the last type from the modifiers and returns it."""
        for word in reversed(self._words):
            if word in TYPES:
                position = len(self._words) - 1 - self._words[::-1].index(word)
                del self._words[position]
                return TYPES[word]
        raise self.unknown()

    def finish(self, operands: int) -> None:
        """Raises if modifiers are left over, or the number of operands is another."""
        if self._words or len(self.operands) != operands:
            raise self.unknown()

    def unknown(self) -> Fault:
        return Fault("instruction not modelled")

    def source(self, operand: int | Operand | None, type_: Type) -> int:
        """The number of the register that holds an operand, which must have this width."""
        if isinstance(operand, int):
            operand = self.operands[operand]
        if isinstance(operand, Register):
            if operand.width != type_.bits or operand.negated:
                raise Fault(f"a register of {operand.width} bits where {type_.name} is expected")
            return operand.number
        if isinstance(operand, Immediate) and operand.is_float and type_.name[0] in "su":
            raise Fault(f"literal {operand.text} where {type_.name} is expected")
        return self.program.constant(operand, type_.bits)

    def narrow_source(self, operand: int, type_: Type) -> tuple[int, bool]:
        """As `source`, for the instructions that may read part of a wider register."""
        given = self.operands[operand]
        if isinstance(given, Register) and given.width > type_.bits > 1:
            return given.number, True
        return self.source(given, type_), False

    def target(self, operand: int | Operand | None, bits: int, wider: bool = False) -> int:
        """The number of the register that an instruction writes."""
        if isinstance(operand, int):
            operand = self.operands[operand]
        if operand is None:
            return SINK
        if not isinstance(operand, Register) or operand.negated:
            raise self.unknown()
        if operand.width != bits and not (wider and operand.width > bits):
            raise Fault(f"a register of {operand.width} bits where {bits} are written")
        return operand.number

    def width(self, number: int, default: int) -> int:
        return default if number == SINK else self.program.kernel.register_widths[number]

    def members(self, operand: int) -> tuple[Operand | None, ...]:
        """The registers of a vector operand, or the single register."""
        given = self.operands[operand]
        return given.members if isinstance(given, Group) else (given,)

    def elementwise(
        self,
        function: Callable[..., Array],
        target: int,
        bits: int,
        sources: Sequence[int],
        types: Sequence[Type],
        parts: int = 1,
    ) -> Action:
        """The action target = function(sources). A part of the target is undefined if that part of
        any source is."""
        word = WORD[bits]
        numbers = tuple(sources)
        views = [type_.view for type_ in types]
        seen = list(zip(numbers, views, strict=True))
        if len(numbers) == 1:
            (a,), (va,) = numbers, views

            def one(cta: Cta) -> None:
                value = function(cta.registers[a].view(va))
                cta.write(target, value.view(word), numbers, parts)

            return one
        if len(numbers) == 2:
            (a, b), (va, vb) = numbers, views

            def two(cta: Cta) -> None:
                registers = cta.registers
                value = function(registers[a].view(va), registers[b].view(vb))
                cta.write(target, value.view(word), numbers, parts)

            return two

        def several(cta: Cta) -> None:
            registers = cta.registers
            values = [registers[n].view(view) for n, view in seen]
            cta.write(target, function(*values).view(word), numbers, parts)

        return several

    def bitwise(
        self,
        function: Callable[..., Array],
        spread: Callable[..., Array],
        target: int,
        bits: int,
        sources: Sequence[int],
        types: Sequence[Type],
    ) -> Action:
        """As `elementwise`, but undefined bits are tracked one by one: spread(values, undefined)
        returns those of the result."""
        word = WORD[bits]
        numbers = tuple(sources)
        seen = [(number, type_.view) for number, type_ in zip(numbers, types, strict=True)]

        def action(cta: Cta) -> None:
            registers, undefined = cta.registers, cta.undefined
            values = [registers[n].view(view) for n, view in seen]
            value = function(*values).view(word)
            if undefined.keys().isdisjoint(numbers):
                cta.write(target, value, numbers, 1)
            else:
                unknown = [
                    undefined[n].view(view) if n in undefined else np.zeros_like(registers[n], view)
                    for n, view in seen
                ]
                cta.write_bits(target, value, spread(values, unknown).view(word))

        return action


Handler = Callable[[Decoder], Action | None]
HANDLERS: dict[str, Handler] = {}


def instruction(*opcodes: str) -> Callable[[Handler], Handler]:
    """Adds a handler to the table of instructions."""

    def enter(handler: Handler) -> Handler:
        for opcode in opcodes:
            HANDLERS[opcode] = handler
        return handler

    return enter
