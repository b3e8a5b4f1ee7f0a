"""PTX text -> Kernel: parameters, shared and local variables, instructions and labels."""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .faults import Fault
from .syntax import (
    SPECIAL_REGISTERS,
    Address,
    Group,
    Immediate,
    Instruction,
    Label,
    Layout,
    Location,
    Operand,
    Register,
    Special,
    place_variable,
)
from .text import matching_braces, outside_braces, split_list, statements

ENTRY = r"\.entry\s+({})\s*(?:\((.*?)\))?\s*((?:\.\w+\s*[\d, ]*\s*)*)\{{"
STATEMENT = re.compile(r"(?:@(!?)\s*([%\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)$", re.S)
LITERAL = re.compile(r"(-?)(0[xX][0-9a-fA-F]+|\d+)U?$")
DEPENDENCE = re.compile(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+))?\s*\]$")
TABLE = re.compile(
    r"\.global(?:\s+\.align\s+\d+)?\s+\.[bsu](?P<bits>\d+)\s+(?P<name>[\w$]+)"
    r"\[(?P<count>\d+)\]\s*(?:=\s*\{(?P<values>[^}]*)\})?\s*;"
)
FILE = re.compile(r"\.file\s+(\d+)\s+\"([^\"]*)\"")
INTEGER_MASK = (1 << 64) - 1


class Kernel:
    """One entry of a PTX module, ready to be decoded.

    Triton writes 0x0 before a masked load without `other`, where lanes stay undefined, but also
    before one with `other=0` of integers: `defined_at` says where in the source the latter stand.
    """

    def __init__(
        self,
        ptx: str,
        entry: str | None = None,
        defined_at: Container[Location] = frozenset(),
    ) -> None:
        text = re.sub(r"/\*.*?\*/", " ", ptx, flags=re.S)
        text = re.sub(r"//[^\n]*", "", text)
        found = re.search(ENTRY.format(re.escape(entry) if entry else r"[\w$]+"), text, re.S)
        if found is None:
            raise Fault(f"no entry {entry or ''} in this module")
        self.name = found[1]
        self.layouts = {space: Layout(space) for space in ("param", "shared", "local")}
        self.dynamic_shared: list[str] = []
        self.register_widths: list[int] = []
        self.register_names: dict[int, str] = {}
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.branch_targets: dict[str, list[str]] = {}  # of each table of them, the labels
        self.programs: dict[Any, Any] = {}  # decoded for a block and a size of shared memory
        self._scopes: list[dict[str, int]] = [{}]
        self._location: Location | None = None
        self._files = {match[1]: match[2] for match in FILE.finditer(text)}
        for declaration in split_list(found[2] or ""):
            self._declare_variable(declaration)
        self._tables = {match["name"]: match for match in TABLE.finditer(text)}
        self.tables: dict[str, NDArray[Any]] = {}  # module variables that this kernel names
        for declaration in re.finditer(
            r"\.shared\b[^;{}]*;", outside_braces(text[: found.start()])
        ):
            self._declare_variable(declaration[0].rstrip(";"))
        body = matching_braces(text, found.end())
        for statement in statements(body):
            self._collect(statement)
        self._resolve()
        mark_undefined_lanes(self.instructions, defined_at)

    @property
    def params(self) -> list[tuple[str, int, int]]:
        """(name, offset, bytes) of each parameter."""
        variables = self.layouts["param"].variables
        return [(name, variable.offset, variable.size) for name, variable in variables.items()]

    @property
    def static_shared(self) -> int:
        """Bytes of shared memory that the kernel itself declares."""
        return self.layouts["shared"].size

    @property
    def dynamic_offset(self) -> int:
        """Where dynamic shared memory begins: after the static one, at 16 bytes."""
        return -(-self.static_shared // 16) * 16

    def _declare_variable(self, text: str) -> None:
        dynamic = place_variable(text.strip(), self.layouts)
        if dynamic:
            self.dynamic_shared.append(dynamic)

    def _collect(self, statement: str) -> None:
        if statement == "{":
            self._scopes.append({})
        elif statement == "}":
            self._scopes.pop()
        elif statement.endswith(":"):
            self._label = statement[:-1]
            self.labels[self._label] = len(self.instructions)
        elif statement.startswith(".branchtargets"):
            self.branch_targets[self._label] = split_list(statement.split(None, 1)[1])
        elif statement.startswith(".reg"):
            self._declare_registers(statement)
        elif statement.split()[0] == ".loc":
            _, file, line, column, *_ = statement.split()
            self._location = (self._files.get(file, ""), int(line), int(column))
        elif statement.startswith((".shared", ".local")):
            self._declare_variable(statement)
        elif not statement.startswith((".pragma", ".file")):
            self.instructions.append(self._instruction(statement))

    def _declare_registers(self, statement: str) -> None:
        match = re.match(r"\.reg\s+\.(pred|[bsuf](\d+))\s+(.*)$", statement, re.S)
        if match is None:
            raise Fault(f"declaration not understood: {statement}")
        width = int(match[2]) if match[2] else 1
        for name in split_list(match[3]):
            family = re.match(r"([%\w$]+)<(\d+)>$", name)
            for one in [f"{family[1]}{i}" for i in range(int(family[2]))] if family else [name]:
                self._scopes[-1][one] = len(self.register_widths)
                self.register_names[len(self.register_widths)] = one
                self.register_widths.append(width)

    def _instruction(self, statement: str) -> Instruction:
        match = STATEMENT.match(statement)
        if match is None or statement.startswith("."):
            raise Fault(f"statement not understood: {statement}")
        negated, guard_name, name, rest = match.groups()
        opcode, *modifiers = name.split(".")
        guard = None
        if guard_name:
            found = self._register(guard_name)
            if found is None or found.width != 1:
                raise Fault(f"guard is no predicate: {statement}")
            guard = Register(found.number, 1, bool(negated))
        operands = tuple(self._operand(text, statement) for text in split_list(rest))
        # Scopes close behind their text, so registers are looked up now and symbols later.
        plain = " ".join(statement.split())
        return Instruction(opcode, tuple(modifiers), operands, guard, plain, self._location)

    def _register(self, name: str) -> Register | None:
        for scope in reversed(self._scopes):
            if name in scope:
                number = scope[name]
                return Register(number, self.register_widths[number])
        return None

    def _operand(self, text: str, statement: str) -> Operand | None:
        text = text.strip()
        if text == "_":
            return None
        if text.startswith("{"):
            members = split_list(text.strip("{} \t\n"))
            return Group(tuple(self._operand(member, statement) for member in members))
        if "|" in text:
            return Group(tuple(self._operand(part, statement) for part in text.split("|")))
        if text.startswith("["):
            return self._address(text, statement)
        if text.startswith("!"):
            found = self._register(text[1:].strip())
            if found is None:
                raise Fault(f"unknown register in: {statement}")
            return Register(found.number, found.width, negated=True)
        found = self._register(text)
        if found is not None:
            return found
        if text in SPECIAL_REGISTERS:
            return Special(text)
        return literal(text) or self._symbol(text, statement)

    def _address(self, text: str, statement: str) -> Address:
        match = DEPENDENCE.match(text)
        if match is None:
            raise Fault(f"address not understood: {statement}")
        base = self._operand(match[1], statement)
        if isinstance(base, Label):
            raise Fault(f"unknown variable {match[1]} in: {statement}")
        assert isinstance(base, Register | Immediate)
        return Address(base, int(match[2], 0) if match[2] else 0)

    def _symbol(self, text: str, statement: str) -> Operand:
        if text in self.dynamic_shared:
            return Immediate(self.dynamic_offset, text=text)
        for layout in self.layouts.values():
            if text in layout.variables:
                return Immediate(layout.variables[text].offset, text=text)
        if text in self._tables:
            if text not in self.tables:
                self.tables[text] = table_of(self._tables[text])
            return Immediate(self.tables[text].ctypes.data, text=text)
        if text == "WARP_SZ":
            return Immediate(32)
        if re.fullmatch(r"[$A-Za-z_][\w$]*", text):
            return Label(text)
        raise Fault(f"operand {text} not understood in: {statement}")

    def _resolve(self) -> None:
        """Each label named by an instruction must exist."""
        for instruction in self.instructions:
            for operand in instruction.operands:
                if isinstance(operand, Label) and operand.name not in self.labels:
                    raise Fault(f"unknown name {operand.name} in: {instruction.text}")
        for table, labels in self.branch_targets.items():
            for label in labels:
                if label not in self.labels:
                    raise Fault(f"unknown label {label} among the targets {table}")


def table_of(declared: re.Match[str]) -> NDArray[Any]:
    """A module variable with its initial values, the rest zeros."""
    table = np.zeros(int(declared["count"]), f"u{int(declared['bits']) // 8}")
    values = [int(value, 0) for value in (declared["values"] or "").split(",") if value.strip()]
    mask = (1 << int(declared["bits"])) - 1
    table[: len(values)] = [value & mask for value in values]
    return table


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


def mark_undefined_lanes(instructions: list[Instruction], defined_at: Container[Location]) -> None:
    """Find Triton's `mov r, 0x0; @p ld r`: where p is false, Triton promises no value.

    LLVM writes numbers in decimal, so a literal 0x0 comes from Triton's own text.
    """
    for start, load in enumerate(instructions):
        if load.guard is None or load.opcode not in ("ld", "atom"):
            continue
        place = load.location
        # Line 0 is a place that the compiler lost: no alarm on a guess.
        if load.opcode == "ld" and place and (place in defined_at or not place[1]):
            continue
        target = load.operands[0]
        loaded = target.members if isinstance(target, Group) else (target,)
        for before in reversed(instructions[max(0, start - len(loaded)) : start]):
            source = before.operands[-1] if before.operands else None
            if before.opcode != "mov" or not isinstance(source, Immediate) or source.text != "0x0":
                break
            before.marks_undefined = before.operands[0] in loaded
