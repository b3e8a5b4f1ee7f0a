"""What a parsed kernel consists of: operands, instructions, variables."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .faults import Fault

LITERAL = re.compile(r"(-?)(0[xX][0-9a-fA-F]+|\d+)U?$")
INTEGER_MASK = (1 << 64) - 1

# Generic addresses: where the windows of shared and local memory lie. Real addresses are far below.
SHARED_WINDOW = 1 << 60
LOCAL_WINDOW = 1 << 61

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
    """A literal or an address known when the kernel is parsed, as its two's complement bits."""

    bits: int
    is_float: bool = False
    text: str = ""

    @property
    def float_bits(self) -> int:
        """How wide a literal of floating point is; 0 for 1.0, which no instruction here takes."""
        return {"f": 32, "d": 64}.get(self.text[1:2].lower(), 0)


def literal(text: str) -> Immediate | None:
    """A number as PTX writes it: decimal, hexadecimal, or the bits of a float after 0f or 0d."""
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
    """[base + offset]; `is_passed` for a variable that calls pass, which lies in local memory."""

    base: Register | Immediate
    offset: int
    is_passed: bool = False


@dataclass(frozen=True)
class Group:
    """Registers in braces, or `d|p`; None where the kernel wrote `_`."""

    members: tuple[Operand | None, ...]


@dataclass(frozen=True)
class Label:
    """The place a branch goes to."""

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
    location: Location | None = None  # of the source, as .loc gives it
    # Triton marks lanes that a masked load without `other` leaves undefined by a literal 0x0.
    marks_undefined: bool = False


@dataclass
class Variable:
    """A parameter, or a variable in shared or local memory, at an offset of its space."""

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
    """Put one declared variable into its layout; the name of a dynamic shared array is returned."""
    match = VARIABLE.match(text)
    if not match or match["kind"] == "pred":
        raise Fault(f"declaration not understood: {text}")
    space = match["space"]
    if space not in layouts:
        return None  # module globals: a kernel that names one faults at its use
    element = int(match["bits"]) // 8
    if match["array"] and not match["count"]:
        return match["name"]
    count = int(match["count"]) if match["array"] else 1
    layouts[space].place(match["name"], element * count, int(match["align"] or element))
    return None
