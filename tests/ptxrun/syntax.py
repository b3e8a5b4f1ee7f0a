"""The parts of a parsed kernel: operands, instructions, variables."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .faults import Fault

LITERAL = re.compile(r"(-?)(0[xX][0-9a-fA-F]+|\d+)U?$")
INTEGER_MASK = (1 << 64) - 1

# The windows of memory that is not global in generic addresses. Real addresses are far below.
SHARED_WINDOW = 1 << 60
LOCAL_WINDOW = 1 << 61
PARAM_WINDOW = 1 << 59

SPECIAL_REGISTERS = {
    f"%{name}.{axis}": 32 for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"
} | {
    f"%{name}": 32
    for name in (
        "laneid",
        "warpid",
        "nwarpid",
        "lanemask_eq",
        "lanemask_lt",
        "lanemask_le",
        "lanemask_gt",
        "lanemask_ge",
    )
}


Location = tuple[str, int, int]  # file, line, column


@dataclass(frozen=True)
class Register:
    """A declared register, by its number in the kernel; `width` is 1 for predicates."""

    number: int
    width: int
    negated: bool = False


@dataclass(frozen=True)
class Special:
    """A read-only register such as %tid.x."""

    name: str


@dataclass(frozen=True)
class Immediate:
    """A literal, or an address that is known when the kernel is parsed, in two's complement."""

    bits: int
    is_float: bool = False
    text: str = ""

    @property
    def float_bits(self) -> int:
        """Bits of a floating-point literal; 0 if written as 1.0, which no instruction here uses."""
        return {"f": 32, "d": 64}.get(self.text[1:2].lower(), 0)


def literal(text: str) -> Immediate | None:
    """Parses a PTX number: decimal, hexadecimal, or the bits of a float after 0f or 0d."""
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}", text):
        return Immediate(int(text[2:], 16), is_float=True, text=text)
    if re.fullmatch(r"-?\d+\.\d*", text):
        return Immediate(0, is_float=True, text=text)
    match = LITERAL.match(text)
    if match is None:
        return None
    value = int(match[2], 16) if match[2][:2] in ("0x", "0X") else int(match[2])
    return Immediate((-value if match[1] else value) & INTEGER_MASK, text=text)


@dataclass(frozen=True)
class Address:
    """[base + offset]; `is_passed` if it is a variable passed to a call, kept in local memory."""

    base: Register | Immediate
    offset: int
    is_passed: bool = False


@dataclass(frozen=True)
class Group:
    """Registers in braces, or `d|p`; None for `_`."""

    members: tuple[Operand | None, ...]


@dataclass(frozen=True)
class Label:
    """The target of a branch."""

    name: str


Operand = Register | Special | Immediate | Address | Group | Label


@dataclass
class Instruction:
    """One statement: `@guard opcode.modifiers operands;`."""

    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand | None, ...]
    guard: Register | None
    text: str
    location: Location | None = None  # in the source, from .loc
    # Whether this is the mov that Triton writes for masked lanes without `other`: see parse.py.
    marks_undefined: bool = False


@dataclass
class Variable:
    """A parameter, or a variable in shared or local memory, at an offset in its space."""

    space: str
    offset: int
    size: int


@dataclass
class Layout:
    """Variables of one memory space, placed one after another."""

    space: str
    size: int = 0
    variables: dict[str, Variable] = field(default_factory=dict)

    def place(self, name: str, size: int, alignment: int) -> None:
        offset = -(-self.size // alignment) * alignment
        self.variables[name] = Variable(self.space, offset, size)
        self.size = offset + size


VARIABLE = re.compile(
    r"\.(?P<space>param|shared|local|global|const)(?:\s+\.align\s+(?P<align>\d+))?"
    r"\s+\.(?P<kind>pred|[bsuf])(?P<bits>\d*)"
    r"(?:\s+\.(?:ptr|global|shared|local|const|align\s+\d+))*"  # what a parameter points to
    r"\s+(?P<name>[\w$]+)\s*(?P<array>\[(?P<count>\d*)\])?"
)


def place_variable(text: str, layouts: dict[str, Layout]) -> str | None:
    """Adds a declared variable to its layout. Returns the name if it is a dynamic shared array."""
    match = VARIABLE.match(text)
    if not match or match["kind"] == "pred":
        raise Fault(f"declaration not understood: {text}")
    space = match["space"]
    if space not in layouts:
        return None  # a module variable: Module.table reads it
    element = int(match["bits"]) // 8
    if match["array"] and not match["count"]:
        return match["name"]
    count = int(match["count"]) if match["array"] else 1
    layouts[space].place(match["name"], element * count, int(match["align"] or element))
    return None
