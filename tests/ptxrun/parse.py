"""Parses PTX text into a Kernel: parameters, shared and local variables, instructions, labels."""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Any

from numpy.typing import NDArray

from .faults import Fault
from .module import Module
from .scopes import Scopes
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
    literal,
    place_variable,
)
from .text import split_list, statements

STATEMENT = re.compile(r"(?:@(!?)\s*([%\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)$", re.S)
DEPENDENCE = re.compile(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+))?\s*\]$")
CALL = re.compile(
    r"call(?:\.uni)?\s+(?:\((?P<into>[^)]*)\)\s*,\s*)?(?P<name>[\w$]+)\s*(?P<rest>.*)$", re.S
)
DEEPEST = 16  # nesting of calls. They are inlined, so recursion is not modelled.


class Kernel:
    """One entry of a PTX module, ready to be decoded. Calls are inlined.

    Triton writes 0x0 before a masked load without `other`, whose masked lanes are undefined. It
    writes the same before a masked load of integers with `other=0`. `defined_at` has the source
    locations of the latter.
    """

    def __init__(
        self,
        ptx: str | Module,
        entry: str | None = None,
        defined_at: Container[Location] = frozenset(),
    ) -> None:
        self._module = Module(ptx) if isinstance(ptx, str) else ptx
        found = self._module.function("entry", entry)
        self.name, self.limits = found.name, found.limits
        self.layouts = {space: Layout(space) for space in ("param", "shared", "local")}
        self.dynamic_shared: list[str] = []
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.branch_targets: dict[str, list[str]] = {}  # the labels in each .branchtargets table
        self.programs: dict[Any, Any] = {}  # cache, by block and size of dynamic shared memory
        self.tables: dict[str, NDArray[Any]] = {}  # the module variables that this kernel uses
        self._scopes = Scopes()
        self._calls: list[str] = []  # the calls that the current statement is in, made unique
        self._location: Location | None = None
        for declaration in [*found.params, *self._module.shared]:
            self._declare_variable(declaration)
        for statement in statements(self._module.body(found)):
            self._collect(statement)
        self._resolve()
        mark_undefined_lanes(self.instructions, defined_at)

    @property
    def register_widths(self) -> list[int]:
        return self._scopes.widths

    @property
    def register_names(self) -> dict[int, str]:
        return self._scopes.names

    @property
    def params(self) -> list[tuple[str, int, int]]:
        """(name, offset, bytes) of each parameter."""
        variables = self.layouts["param"].variables
        return [(name, variable.offset, variable.size) for name, variable in variables.items()]

    @property
    def static_shared(self) -> int:
        """Bytes of shared memory that the kernel declares."""
        return self.layouts["shared"].size

    @property
    def dynamic_offset(self) -> int:
        """Where dynamic shared memory begins: after the static one, aligned to 16 bytes."""
        return -(-self.static_shared // 16) * 16

    def _declare_variable(self, text: str) -> None:
        dynamic = place_variable(text.strip(), self.layouts)
        if dynamic:
            self.dynamic_shared.append(dynamic)

    def _collect(self, statement: str) -> None:
        first = statement.split()[0]
        if statement == "{":
            self._scopes.enter()
        elif statement == "}":
            self._scopes.leave()
        elif statement.endswith(":"):
            self._label = self._own(statement[:-1])
            self.labels[self._label] = len(self.instructions)
        elif first == ".branchtargets":
            names = split_list(statement.split(None, 1)[1])
            self.branch_targets[self._label] = [self._own(name) for name in names]
        elif first == ".reg":
            self._scopes.declare_registers(statement)
        elif first == ".loc":
            # After a comma: where the function was inlined, as from Triton 3.9.
            _, file, line, column, *_ = statement.partition(",")[0].split()
            self._location = (self._module.files.get(file, ""), int(line), int(column))
        elif first == ".param":
            self._scopes.declare_passed(statement, self.layouts["local"])
        elif first in (".shared", ".local"):
            self._declare_variable(statement)
        elif first in ("call", "call.uni"):
            self._call(statement)
        elif first not in (".pragma", ".file"):
            self.instructions.append(self._instruction(statement))

    def _own(self, label: str) -> str:
        """The name of a label, made unique for the call that it is in."""
        return f"{self._calls[-1]}:{label}" if self._calls else label

    def _call(self, statement: str) -> None:
        """Inlines the statements of the called function. Arguments are in local memory."""
        match = CALL.match(statement)
        if match is None:
            raise Fault(f"call not understood: {statement}")
        plain = " ".join(statement.split())
        if match["name"] not in self._module.functions:  # such as the function of an assertion
            self.instructions.append(Instruction("call", (), (), None, plain, self._location))
            return
        function = self._module.function("func", match["name"])
        if len(self._calls) == DEEPEST:
            raise Fault(f"{function.name} is called within too many calls")
        passed = split_list(match["into"] or "")
        passed += split_list(match["rest"].lstrip(", ").strip("() \t\n"))
        if len(function.formal) != len(passed):
            raise Fault(f"{function.name} takes {len(function.formal)} arguments: {plain}")
        places = [self._scopes.passed(name) or name for name in passed]
        self._scopes.enter()
        for name, unique in zip(function.formal, places, strict=True):
            self._scopes.name_passed(name, unique)
        self._calls.append(f"{function.name}@{len(self.instructions)}")
        for inner in statements(self._module.body(function)):
            self._collect(inner)
        self.labels[self._own("")] = len(self.instructions)
        self._calls.pop()
        self._scopes.leave()

    def _instruction(self, statement: str) -> Instruction:
        match = STATEMENT.match(statement)
        if match is None or statement.startswith("."):
            raise Fault(f"statement not understood: {statement}")
        negated, guard_name, name, rest = match.groups()
        opcode, *modifiers = name.split(".")
        guard = None
        if guard_name:
            found = self._scopes.register(guard_name)
            if found is None or found.width != 1:
                raise Fault(f"guard is no predicate: {statement}")
            guard = Register(found.number, 1, bool(negated))
        operands = tuple(self._operand(text, statement) for text in split_list(rest))
        if self._calls and opcode == "ret":
            opcode, modifiers, operands = "bra", [], (Label(self._own("")),)
        if opcode in ("ld", "st") and any(isinstance(o, Address) and o.is_passed for o in operands):
            modifiers = ["local" if word.startswith("param") else word for word in modifiers]
        # A scope ends with its text, so registers are looked up here. Labels come later.
        plain = " ".join(statement.split())
        return Instruction(opcode, tuple(modifiers), operands, guard, plain, self._location)

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
            found = self._scopes.register(text[1:].strip())
            if found is None:
                raise Fault(f"unknown register in: {statement}")
            return Register(found.number, found.width, negated=True)
        found = self._scopes.register(text)
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
        offset = int(match[2], 0) if match[2] else 0
        return Address(base, offset, self._scopes.passed(match[1]) is not None)

    def _symbol(self, text: str, statement: str) -> Operand:
        if text in self.dynamic_shared:
            return Immediate(self.dynamic_offset, text=text)
        name = self._scopes.passed(text) or text
        for layout in self.layouts.values():
            if name in layout.variables:
                return Immediate(layout.variables[name].offset, text=text)
        table = self._module.table(text)
        if table is not None:
            self.tables[text] = table
            return Immediate(table.ctypes.data, text=text)
        if text == "WARP_SZ":
            return Immediate(32)
        if re.fullmatch(r"[$A-Za-z_][\w$]*", text):
            return Label(self._own(text))
        raise Fault(f"operand {text} not understood in: {statement}")

    def _resolve(self) -> None:
        """Raises if an instruction names a label that does not exist."""
        for instruction in self.instructions:
            for operand in instruction.operands:
                if isinstance(operand, Label) and operand.name not in self.labels:
                    raise Fault(f"unknown name {operand.name} in: {instruction.text}")
        for table, labels in self.branch_targets.items():
            for label in labels:
                if label not in self.labels:
                    raise Fault(f"unknown label {label} among the targets {table}")


def mark_undefined_lanes(instructions: list[Instruction], defined_at: Container[Location]) -> None:
    """Marks the mov in Triton's `mov r, 0x0; @p ld r`: where p is false, r is undefined in Triton.

    LLVM writes numbers in decimal, so a literal 0x0 comes from Triton's own inline assembly.
    """
    for start, load in enumerate(instructions):
        if load.guard is None or load.opcode not in ("ld", "atom"):
            continue
        place = load.location
        # On line 0 the compiler has lost the location. We do not guess, and raise no false alarm.
        if load.opcode == "ld" and place and (place in defined_at or not place[1]):
            continue
        target = load.operands[0]
        loaded = target.members if isinstance(target, Group) else (target,)
        for before in reversed(instructions[max(0, start - len(loaded)) : start]):
            source = before.operands[-1] if before.operands else None
            if before.opcode != "mov" or not isinstance(source, Immediate) or source.text != "0x0":
                break
            before.marks_undefined = before.operands[0] in loaded
