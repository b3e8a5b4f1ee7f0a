"""csrc/rules.h: every rule as a struct, and what the walkers know of it."""

from __future__ import annotations

import textwrap
from typing import Any

from ..rules import RULES, Rule, RuleError, layout
from ..rules.fingerprint import fingerprint
from ..rules.spec import USUAL, at
from .text import Kind, Text, camel, function

HEADER = """\
// The update rules as C++. GENERATED from python/fusedstep/rules by `make rules`: do not edit.
// clang-format off
#pragma once

#include "numeric.h"

namespace fusedstep {

// Of the files in python/fusedstep/rules. A module that was built from others is not used.
constexpr char kFingerprint[] = "{fingerprint}";
"""

TABLE = """\
// A tensor's row of the table (plan.h): the addresses of its slots, then its sizes. The last slot
// is where a rule's own states begin, if it has any."""

FACTS = """\
// What is known of a rule by its number. `states` are those as large as the parameter.
struct RuleFacts {
  const char* name;
  int states;
  bool factored;
};
constexpr RuleFacts kRules[] = {"""

RULE_OF = """\
// Dtypes of parameter, gradient and states, if there are any, for which a GPU has a kernel.
template <int P, int G, int S>
struct Dtypes {};
template <class... D>
struct DtypesList {};
template <int... Rules>
struct RuleList {};

// A rule by its number, when compiled.
template <int Rule, class T>
struct RuleOf;"""


def rules_header() -> str:
    """The whole text of csrc/rules.h."""
    constants = [
        f"constexpr int k{camel(name)} = {value};"
        for name, value in vars(layout).items()
        if name.isupper() and isinstance(value, int)
    ]
    families: dict[str, list[Rule]] = {}
    for rule in RULES.values():
        families.setdefault(rule.family or rule.name, []).append(rule)
    own = {rule.name: _own(rule) for rule in RULES.values()}
    shared = _shared(own)
    parts = [
        HEADER.replace("{fingerprint}", fingerprint()),
        "// Order of sums, codes of dtypes, kinds of work: python/fusedstep/rules/layout.py.",
        *constants,
        "",
        TABLE,
        *(_row(kind) for kind in layout.SLOTS),
        "",
        "enum RuleId {",
        *(f"  k{camel(name)}," for name in RULES),
        "};",
        "",
        FACTS,
        *(
            f'    {{"{rule.name}", {len(rule.states)}, {str(rule.factored).lower()}}},'
            for rule in RULES.values()
        ),
        "};",
        f"constexpr int kRuleCount = {len(RULES)};",
        "",
        "namespace {",
        "",
        "// How many slots a row of `fields` numbers has.",
        *_slots_of(),
        *(f"\n{_free(text)}" for text in shared.values()),
        *(f"\n{_struct(name, rules, own)}" for name, rules in families.items()),
        "",
        RULE_OF,
        "",
        f"using Usual = {_dtypes(USUAL)};",
        *(f"\n{_rule_of(rule)}" for rule in RULES.values()),
        "",
        f"using ElementwiseRules = RuleList<{_numbers(factored=False)}>;",
        f"using FactoredRules = RuleList<{_numbers(factored=True)}>;",
        "",
        "}  // namespace",
        "}  // namespace fusedstep",
        "",
    ]
    return "\n".join(parts)


def _numbers(factored: bool) -> str:
    return ", ".join(f"k{camel(r.name)}" for r in RULES.values() if r.factored == factored)


def _row(kind: str) -> str:
    slots, sizes = layout.SLOTS[kind], layout.SIZES[kind]
    lines = [
        f"struct {camel(kind)}Row {{",
        f"  static constexpr int {_counted(slots)};",
        f"  static constexpr int {_counted((*sizes, 'sizes'))};",
        "};",
    ]
    return "\n".join(lines)


def _counted(names: tuple[str, ...]) -> str:
    return ", ".join(f"k{camel(name)} = {k}" for k, name in enumerate(names))


def _slots_of() -> list[str]:
    arguments, factored = ["int64_t fields"], ["int64_t fields", "bool vectors"]
    lines = ["return fields - ElementwiseRow::kSizes;"]
    of_factored = ["return fields - (vectors ? VectorRow::kSizes : MatrixRow::kSizes);"]
    return [
        function("int64_t", "elementwise_slots", arguments, lines),
        function("int64_t", "factored_slots", factored, of_factored),
    ]


def _own(rule: Rule) -> list[Text]:
    """A rule's own texts, checked."""
    rule.check()
    texts = [Text(rule, own) for own in rule.functions]
    for text in texts:
        text.result([Kind(constant=name in rule.scalars) for name in text.arguments])
    update = texts[0]
    if update.returned != ["p", *rule.states]:
        update.refuse(update.last, f"the update returns {', '.join(['p', *rule.states])}")
    return texts


def _shared(own: dict[str, list[Text]]) -> dict[str, Text]:
    """What rules' texts call that is none of their own, each behind what it calls itself."""
    found: dict[str, Text] = {}

    def visit(text: Text) -> None:
        for called in text.texts.values():
            below = Text(text.rule, called)
            visit(below)
            if called in text.rule.functions:
                continue
            other = found.setdefault(below.name, below)
            if other.function is not called:
                raise RuleError(
                    f"{at(below.rule, called)}: another text is named {below.name!r}: "
                    f"{at(other.rule, other.function)}"
                )

    for texts in own.values():
        for text in texts:
            visit(text)
    return found


def _free(text: Text) -> str:
    arguments = [f"T {name}" for name in text.arguments]
    result = "bool" if text.is_condition() else "T"
    lines = text.lines({*text.arguments}, {})
    return "template <class T>\n" + function(result, text.name, arguments, lines)


def _struct(family: str, rules: list[Rule], own: dict[str, list[Text]]) -> str:
    first = rules[0]
    for rule in rules:
        if rule.scalars != first.scalars:
            raise RuleError(
                f"{at(rule, rule.update)}: the rules of family {family!r} share their scalars, and "
                f"{first.name!r} has others"
            )
    fields = textwrap.fill(
        f"T {', '.join(first.scalars)};", 98, initial_indent="  ", subsequent_indent="      "
    )
    methods = {text.function: _method(text) for rule in rules for text in own[rule.name]}
    heads = [method.splitlines()[0] for method in methods.values()]
    for text_function, head in zip(methods, heads, strict=True):
        if heads.count(head) > 1:
            raise RuleError(f"{at(first, text_function)}: two texts of {family!r} are {head!r}")
    return "\n".join(
        [
            "template <class T>",
            f"struct {camel(family)} {{",
            *([fields] if first.scalars else []),
            *("\n" + textwrap.indent(method, "  ") for method in methods.values()),
            "};",
        ]
    )


def _method(text: Text) -> str:
    """A text as a member: values are arguments, scalars are fields. A returned argument is updated
    in place, another returned name is an output, a returned expression is the result."""
    rule = text.rule
    arguments = [name for name in text.arguments if name not in rule.scalars]
    outputs = [name for name in text.returned if name not in arguments]
    parameters = [f"T{'&' if name in text.returned else ''} {name}" for name in arguments]
    parameters += [f"T& {name}" for name in outputs]
    left_out: dict[Any, list[int]] = {}
    for own in rule.functions:
        names = own.__code__.co_varnames[: own.__code__.co_argcount]
        left_out[own] = [k for k, name in enumerate(names) if name in rule.scalars]
    result = "void" if text.returned else "bool" if text.is_condition() else "T"
    name = "update" if text.function is rule.update else text.name
    lines = text.lines({*arguments, *outputs}, left_out)
    return function(result, name, parameters, lines, " const")


def _rule_of(rule: Rule) -> str:
    dtypes = "Usual" if rule.dtypes == USUAL else _dtypes(rule.dtypes)
    return "\n".join(
        [
            "template <class T>",
            f"struct RuleOf<k{camel(rule.name)}, T> {{",
            f"  using type = {camel(rule.family or rule.name)}<T>;",
            *([] if rule.factored else [f"  using dtypes = {dtypes};"]),
            f"  static constexpr int kStates = {len(rule.states)};",
            "};",
        ]
    )


def _dtypes(sets: tuple[tuple[str, ...], ...]) -> str:
    entries = [", ".join(f"k{camel(name)}" for name in (*own, own[0])[:3]) for own in sets]
    return f"DtypesList<{', '.join(f'Dtypes<{entry}>' for entry in entries)}>"
