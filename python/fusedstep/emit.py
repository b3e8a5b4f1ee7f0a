"""Prints the headers that C++ has from Python: csrc/rules.h, every rule of fusedstep.rules as a
struct, and csrc/cuda/cut.h, how `fusedstep.gpu.cut` cuts tensors into work.

Run `make rules` after a change; a test fails while a file is stale.
A rule is straight-line arithmetic, which reads the same in Python and in C++.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

from .gpu import cut
from .rules import RULES, Rule, layout

HEADER = """\
// The update rules as C++. GENERATED from python/fusedstep/rules by `make rules`: do not edit.
// clang-format off
#pragma once

#include "numeric.h"

namespace fusedstep {
"""


def rules_header() -> str:
    """The whole text of csrc/rules.h."""
    constants = [
        f"constexpr int k{_camel(name)} = {value};"
        for name, value in vars(layout).items()
        if name.isupper()
    ]
    families: dict[str, list[Rule]] = {}
    for rule in RULES.values():
        families.setdefault(rule.family or rule.name, []).append(rule)
    parts = [
        HEADER,
        "// Order of sums, codes of dtypes, kinds of work: python/fusedstep/rules/layout.py.",
        *constants,
        "",
        "enum RuleId {",
        *(f"  k{_camel(rule.name)}," for rule in RULES.values()),
        "};",
        "",
        "namespace {",
        *(f"\n{_struct(name, rules)}" for name, rules in families.items()),
        "",
        "}  // namespace",
        "}  // namespace fusedstep",
        "",
    ]
    return "\n".join(parts)


CUT_HEADER = """\
// How tensors are cut into work for a GPU. GENERATED from python/fusedstep/gpu/cut.py by
// `make rules`: do not edit.
// clang-format off
#pragma once

#include <cstdint>

namespace fusedstep::cuda {
"""

CUT_CONSTANTS = {
    "kChunk": (cut.CHUNK, "elements of an elementwise entry"),
    "kColumnsWidth": (cut.COLUMNS_WIDTH, "columns that a unit finishes"),
    "kTinyElements": (cut.TINY_ELEMENTS, "of a matrix that one thread takes"),
    "kTinyMatrices": (cut.TINY_MATRICES, "of a unit"),
    "kPieceElements": (cut.PIECE, "of a vector"),
    "kWaveEntry": (cut.WAVE_ENTRY, "numbers of an entry of the waves"),
}


def cut_header() -> str:
    """The whole text of csrc/cuda/cut.h."""
    said = dict(re.findall(r"^    (\w+): int = 0  # (.+)$", inspect.getsource(cut.Cut), re.M))
    fields = [f"  int64_t {f};" + (f"  // {said[f]}" if f in said else "") for f in cut.FIELDS]
    parts = [
        CUT_HEADER,
        *(f"constexpr int {n} = {value};  // {why}" for n, (value, why) in CUT_CONSTANTS.items()),
        "",
        "// Kinds of work, by the number that Python gives them.",
        "enum class Unit : int {",
        *(f"  k{_camel(name)}," for name in cut.UNITS),
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


def _camel(name: str) -> str:
    return "".join(word.title() for word in name.lower().split("_"))


def _struct(family: str, rules: list[Rule]) -> str:
    fields = textwrap.fill(
        f"T {', '.join(rules[0].scalars)};", 98, initial_indent="  ", subsequent_indent="      "
    )
    methods = {function: rule for rule in rules for function in rule.functions}
    return "\n".join(
        [
            "template <class T>",
            f"struct {_camel(family)} {{",
            fields,
            *(f"\n{_method(rule, function)}" for function, rule in methods.items()),
            "};",
        ]
    )


def _method(rule: Rule, function: Callable[..., object]) -> str:
    """One rule text as a member: values are arguments, scalars are fields. A returned argument is
    updated in place, another returned name is an output, a returned expression is the result."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    arguments = [a.arg for a in tree.args.args if a.arg not in rule.scalars]
    *body, last = (s for s in tree.body if not isinstance(s, ast.Expr))
    assert isinstance(last, ast.Return) and last.value is not None
    is_update = function is rule.functions[0]

    returned: list[str] = []
    if isinstance(last.value, ast.Tuple):
        for output in last.value.elts:
            assert isinstance(output, ast.Name), f"{function.__name__} returns more than names"
            returned.append(output.id)
    outputs = [name for name in returned if name not in arguments]
    parameters = [f"T{'&' if a in returned else ''} {a}" for a in arguments]
    parameters += [f"T& {name}" for name in outputs]

    known = {*arguments, *outputs}
    lines = []
    for statement in body:
        assert isinstance(statement, ast.Assign), f"{function.__name__} has a branch or a loop"
        (target,) = statement.targets
        assert isinstance(target, ast.Name)
        declare = "" if target.id in known else "T "
        known.add(target.id)
        lines.append(f"{declare}{target.id} = {_expression(statement.value)};")
    if not returned:
        lines.append(f"return {_expression(last.value)};")

    name = "update" if is_update else function.__name__
    head = (
        f"FUSEDSTEP_INLINE {'void' if returned else 'T'} {name}({', '.join(parameters)}) const {{"
    )
    return textwrap.indent("\n".join([head, *(f"  {line}" for line in lines), "}"]), "  ")


# What reads the same in Python and in C++; a chained comparison, for one, does not.
ARITHMETIC = (
    ast.Name, ast.Constant, ast.Call, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Load,
    ast.Add, ast.Sub, ast.Mult, ast.USub, ast.Lt, ast.Gt, ast.LtE, ast.GtE, ast.Eq, ast.NotEq,
)  # fmt: skip


class _Literals(ast.NodeTransformer):
    """1.0 -> T(1.0): a bare literal would be a double and widen the expression."""

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Call(ast.Name("T", ast.Load()), [node], [])


def _expression(node: ast.expr) -> str:
    for part in ast.walk(node):
        chained = isinstance(part, ast.Compare) and len(part.ops) > 1
        assert isinstance(part, ARITHMETIC) and not chained, f"not arithmetic: {ast.unparse(node)}"
    return ast.unparse(ast.fix_missing_locations(_Literals().visit(node)))


# By their place in csrc.
HEADERS = {"rules.h": rules_header, "cuda/cut.h": cut_header}

if __name__ == "__main__":
    for place, text in HEADERS.items():
        (Path(sys.argv[1]) / place).write_text(text())
