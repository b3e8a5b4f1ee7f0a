"""Prints one rule text as C++. A text is straight-line arithmetic, which both languages read alike.

Anything else raises an error with the rule, file and line. So does arithmetic on scalars and
literals alone: one backend would compute it in float64 and another in float32.
"""

from __future__ import annotations

import ast
import functools
import linecache
import textwrap
from typing import Any, NamedTuple, NoReturn

from ..rules import Rule, RuleError
from ..rules.spec import at, called_by

# The named operations, with their number of arguments.
OPERATIONS = {"div": 2, "sqrt": 1, "maximum": 2, "minimum": 2, "where": 3}
# Names that Python allows and C++ reserves.
TAKEN = {
    "T", "auto", "bool", "case", "catch", "char", "const", "default", "delete", "do", "double",
    "enum", "explicit", "extern", "false", "float", "friend", "goto", "inline", "int", "long",
    "mutable", "namespace", "new", "number", "operator", "private", "protected", "public",
    "register", "short", "signed", "sizeof", "static", "struct", "switch", "template", "this",
    "throw", "true", "typedef", "typename", "union", "unsigned", "using", "virtual", "void",
    "volatile",
}  # fmt: skip
LARGEST = (2.0 - 2.0**-23) * 2.0**127  # in float32
INSTEAD = {
    ast.If: "a branch: an option is a number, or another rule",
    ast.IfExp: "a branch: use where(condition, a, b)",
    ast.For: "a loop",
    ast.While: "a loop",
    ast.AugAssign: "an augmented assignment: write x = x + y",
    ast.Pow: "a power: write a product, or compute a scalar on the host",
    ast.Div: "a plain division: write div(a, b)",
}


class Kind(NamedTuple):
    """What an expression is."""

    condition: bool = False  # otherwise a number
    constant: bool = False  # made only of scalars and literals


class Text:
    """A checked text of a rule."""

    def __init__(self, rule: Rule, function: Any) -> None:
        self.rule, self.function = rule, function
        self.name: str = function.__name__
        self.tree = _syntax(function)
        self.texts = called_by(function)
        spec = self.tree.args
        if spec.vararg or spec.kwarg or spec.kwonlyargs or spec.defaults:
            self.refuse(self.tree, "arguments must be positional, without defaults")
        self.arguments = [argument.arg for argument in spec.args]
        for node in ast.walk(self.tree):
            name = getattr(node, "id", getattr(node, "arg", None))
            if name in TAKEN:
                self.refuse(node, f"{name!r} is a word of C++: use another name")
        *self.body, last = (s for s in self.tree.body if not isinstance(s, ast.Expr))
        if not isinstance(last, ast.Return) or last.value is None:
            self.refuse(last, "the last line of a text is a return")
        self.last = last
        self.returned: list[str] = []  # names; empty if the text returns an expression
        if isinstance(last.value, ast.Tuple):
            for output in last.value.elts:
                if not isinstance(output, ast.Name):
                    self.refuse(output, "a returned tuple holds names alone")
                self.returned.append(output.id)

    def refuse(self, node: Any, why: str) -> NoReturn:
        raise RuleError(f"{at(self.rule, self.function, node.lineno)}: {self.name}: {why}")

    def result(self, kinds: list[Kind]) -> Kind:
        """The kind of the result, for arguments of these kinds. Checks every line. The members of
        a returned tuple are numbers."""
        known = dict(zip(self.arguments, kinds, strict=True))
        for statement in self.body:
            if not isinstance(statement, ast.Assign):
                why = INSTEAD.get(type(statement), "a statement that is not an assignment")
                self.refuse(statement, f"a rule text cannot contain {why}")
            (target,) = statement.targets[:1] if len(statement.targets) == 1 else (None,)
            if not isinstance(target, ast.Name):
                self.refuse(statement, "an assignment has one name on its left")
            kind = self._kind(statement.value, known)
            if kind.condition:
                self.refuse(statement, "a condition has no name: write it inside where()")
            known[target.id] = kind
        if self.returned:
            for name in self.returned:
                if name not in known:
                    self.refuse(self.last, f"{name!r} is returned but never assigned")
            return Kind()
        return self._kind(self.last.value, known)

    def _kind(self, node: Any, known: dict[str, Kind]) -> Kind:
        if isinstance(node, ast.Name):
            if node.id not in known:
                self.refuse(node, f"{node.id!r} is no argument and is not assigned above")
            return known[node.id]
        if isinstance(node, ast.Constant):
            if isinstance(node.value, bool) or not isinstance(node.value, (int, float)):
                self.refuse(node, f"{node.value!r} is no number")
            if abs(node.value) > LARGEST:
                self.refuse(node, f"{node.value!r} is more than float32 holds")
            return Kind(constant=True)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return self._number(node.operand, known)
        if isinstance(node, ast.BinOp):
            if not isinstance(node.op, (ast.Add, ast.Sub, ast.Mult)):
                why = INSTEAD.get(type(node.op), "an operation that rule texts cannot use")
                self.refuse(node, why)
            return self._arithmetic(node, [node.left, node.right], known)
        if isinstance(node, ast.Compare):
            if len(node.ops) > 1:
                self.refuse(node, "a chained comparison differs in C++: use two where()")
            if not isinstance(node.ops[0], (ast.Lt, ast.Gt, ast.LtE, ast.GtE, ast.Eq, ast.NotEq)):
                self.refuse(node, "a comparison is one of < > <= >= == !=")
            sides = [self._number(side, known) for side in (node.left, *node.comparators)]
            return Kind(True, all(side.constant for side in sides))
        if isinstance(node, ast.Call):
            return self._call(node, known)
        self.refuse(node, INSTEAD.get(type(node), f"no arithmetic: {ast.unparse(node)}"))

    def _call(self, node: ast.Call, known: dict[str, Kind]) -> Kind:
        if not isinstance(node.func, ast.Name):
            self.refuse(node, f"an unknown operation: {ast.unparse(node.func)}")
        name = node.func.id
        if node.keywords or any(isinstance(a, ast.Starred) for a in node.args):
            self.refuse(node, f"call {name}() with positions, not with keywords or a star")
        called = None
        if name in self.texts:
            called = Text(self.rule, self.texts[name])
            if called.returned:
                self.refuse(node, f"{name}() returns several numbers: call texts that return one")
        elif name not in OPERATIONS:
            known_names = ", ".join(OPERATIONS)
            self.refuse(node, f"an unknown operation {name!r}: use {known_names}, or a text")
        count = len(called.arguments) if called else OPERATIONS[name]
        if len(node.args) != count:
            self.refuse(node, f"{name}() takes {count} arguments and gets {len(node.args)}")
        if called:
            self._check_member(node, called)
            return called.result([self._number(argument, known) for argument in node.args])
        if name != "where":
            return self._arithmetic(node, node.args, known)
        condition = self._kind(node.args[0], known)
        if not condition.condition:
            self.refuse(node, "the first argument of where() is a comparison")
        numbers = [self._number(argument, known) for argument in node.args[1:]]
        return Kind(constant=all(kind.constant for kind in (condition, *numbers)))

    def _check_member(self, node: ast.Call, called: Text) -> None:
        """Checks a call of one of the rule's own texts, which reads its scalars from fields."""
        if called.function not in self.rule.functions:
            return
        if self.function not in self.rule.functions:
            self.refuse(node, f"{called.name}() belongs to the rule: shared texts cannot call it")
        for name, given in zip(called.arguments, node.args, strict=True):
            same = isinstance(given, ast.Name) and given.id == name
            if name in self.rule.scalars and not same:
                self.refuse(node, f"{called.name}() takes the scalar {name!r} itself")

    def _number(self, node: ast.expr, known: dict[str, Kind]) -> Kind:
        kind = self._kind(node, known)
        if kind.condition:
            self.refuse(node, f"a condition where a number is wanted: {ast.unparse(node)}")
        return kind

    def _arithmetic(self, node: Any, operands: list[Any], known: dict[str, Kind]) -> Kind:
        if all([self._number(operand, known).constant for operand in operands]):
            self.refuse(
                node,
                f"scalars and literals alone: {ast.unparse(node)}. Compute it on the host in "
                "float64, as another scalar",
            )
        return Kind()

    def is_condition(self) -> bool:
        """Whether the text returns a comparison. Call `result` first: it checks the text."""
        value = self.last.value
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
            called = self.texts.get(value.func.id)
            return called is not None and Text(self.rule, called).is_condition()
        return isinstance(value, ast.Compare)

    def lines(self, declared: set[str], drop: dict[Any, list[int]]) -> list[str]:
        """The statements in C++. The first use of a name that is not in `declared` declares it.
        `drop` says which arguments a call of a text leaves out."""
        known = set(declared)
        lines = []
        for statement in self.body:
            assert isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
            name = statement.targets[0].id
            lines.append(
                f"{'' if name in known else 'T '}{name} = {self._cpp(statement.value, drop)};"
            )
            known.add(name)
        if not self.returned:
            lines.append(f"return {self._cpp(self.last.value, drop)};")
        return lines

    def _cpp(self, node: Any, drop: dict[Any, list[int]]) -> str:
        return ast.unparse(self._printed(node, drop))

    def _printed(self, node: Any, drop: dict[Any, list[int]]) -> Any:
        """Writes 1.0 as number<T>(1.0), since a bare literal is a double and would widen the
        expression. Leaves out scalars, which members read from fields."""
        if isinstance(node, ast.Constant):
            return ast.Call(ast.Name("number<T>"), [node], [])
        if isinstance(node, ast.UnaryOp):
            return ast.UnaryOp(node.op, self._printed(node.operand, drop))
        if isinstance(node, ast.BinOp):
            left, right = (self._printed(side, drop) for side in (node.left, node.right))
            return ast.BinOp(left, node.op, right)
        if isinstance(node, ast.Compare):
            left, right = (self._printed(side, drop) for side in (node.left, node.comparators[0]))
            return ast.Compare(left, node.ops, [right])
        if isinstance(node, ast.Call):
            left_out = drop.get(self.texts.get(ast.unparse(node.func)), [])
            given = [a for k, a in enumerate(node.args) if k not in left_out]
            return ast.Call(node.func, [self._printed(a, drop) for a in given], [])
        return node


def _syntax(function: Any) -> ast.FunctionDef:
    code = function.__code__
    for node in _functions(code.co_filename, "".join(linecache.getlines(code.co_filename))):
        if node.lineno == code.co_firstlineno and node.name == function.__name__:
            return node
    raise OSError(f"{code.co_filename}:{code.co_firstlineno}: no source of {function.__name__}")


@functools.lru_cache(maxsize=64)
def _functions(file: str, source: str) -> list[ast.FunctionDef]:
    return [node for node in ast.parse(source, file).body if isinstance(node, ast.FunctionDef)]


def camel(name: str) -> str:
    return "".join(word.title() for word in name.lower().split("_"))


def function(result: str, name: str, arguments: list[str], lines: list[str], end: str = "") -> str:
    """The text of a C++ function."""
    head = f"FUSEDSTEP_INLINE {result} {name}({', '.join(arguments)}){end} {{"
    return "\n".join([head, *textwrap.indent("\n".join(lines), "  ").splitlines(), "}"])


HEADER = """\
// {title} GENERATED by `make rules` from python/fusedstep: do not edit.
// clang-format off
#pragma once
"""


def header(title: str, includes: list[str], parts: list[str], unnamed: bool = False) -> str:
    """A generated header of namespace fusedstep. The unnamed namespace keeps code compiled for one
    instruction set out of files compiled for another."""
    body = "\n\n".join(part.strip("\n") for part in parts)
    spaces = ["namespace fusedstep {", *(["namespace {"] if unnamed else [])]
    ends = [f"}}  // {space[:-2]}" for space in reversed(spaces)]
    included = [f'#include "{name}"' for name in includes]
    lines = [HEADER.format(title=title), *included, *([""] if included else [])]
    return "\n".join([*lines, *spaces, "", body, "", *ends, ""])
