"""Prints the rules as C++ structs, and the facts that walkers need about each.

csrc/rules.h has the elementwise rules. Each factored family has its own header csrc/rules/NAME.h,
and shared texts have one too. So an edit of one text recompiles only the files that use it.
"""

from __future__ import annotations

import textwrap
from typing import Any

from ..rules import RULES, Rule, RuleError
from ..rules.spec import LARGE_MODELS, USUAL, at
from .text import Kind, Text, camel, function, header

FACTS = """\
// Facts about a rule, by its number. `states` counts the states as large as the parameter.
struct RuleFacts {
  const char* name;
  int states;
  bool factored;
};
constexpr RuleFacts kRules[] = {"""

RULE_OF = """
// Dtypes of parameter, gradient and states that have their own GPU kernel.
template <int P, int G, int S>
struct Dtypes {};
template <class... D>
struct DtypesList {};
template <int... Rules>
struct RuleList {};

// The struct of an elementwise rule, by its number.
template <int Rule, class T>
struct RuleOf;
"""


SETS: dict[tuple[tuple[str, ...], ...], str] = {USUAL: "Usual", LARGE_MODELS: "LargeModels"}


def rules_headers() -> dict[str, str]:
    """The texts of the headers, by path in csrc."""
    own = {rule.name: _own(rule) for rule in RULES.values()}
    families: dict[str, list[Rule]] = {}
    for rule in RULES.values():
        families.setdefault(_family(rule), []).append(rule)
    structs: dict[str, list[str]] = {"rules.h": []}
    for name, rules in families.items():
        structs.setdefault(_place(rules[0]), []).append(_struct(name, rules, own))
    structs["rules.h"] += [RULE_OF, *_rules_by_number()]
    texts: dict[str, list[str]] = {place: [] for place in (SHARED, *structs)}
    for text, users in _shared(own).values():
        places = {_place(RULES[name]) for name in users}
        texts[places.pop() if len(places) == 1 else SHARED].append(_free(text))
    own_headers = {
        place: header(FAMILY, ["texts.h"], texts[place] + structs[place], unnamed=True)
        for place in structs
    }
    includes = ["rules/facts.h", "rules/layout.h", SHARED]
    elementwise = header(ELEMENTWISE, includes, texts["rules.h"] + structs["rules.h"], unnamed=True)
    return {
        **own_headers,
        "rules.h": elementwise,
        SHARED: header(CALLED, ["../numeric.h"], texts[SHARED], unnamed=True),
        "rules/facts.h": _facts(),
    }


ELEMENTWISE = "The elementwise rules as C++."
FAMILY = "A family of factored rules as C++."
CALLED = "Rule texts that headers share."
SHARED = "rules/texts.h"


def _family(rule: Rule) -> str:
    return rule.family or rule.name


def _place(rule: Rule) -> str:
    return f"rules/{_family(rule)}.h" if rule.factored else "rules.h"


def _facts() -> str:
    rules = RULES.values()
    lines = [
        "enum RuleId {",
        *(f"  k{camel(name)}," for name in RULES),
        "};",
        "",
        FACTS,
        *(
            f'    {{"{rule.name}", {len(rule.states)}, {str(rule.factored).lower()}}},'
            for rule in rules
        ),
        "};",
        f"constexpr int kRuleCount = {len(RULES)};",
    ]
    return header("The update rules by number.", [], ["\n".join(lines)])


def _rules_by_number() -> list[str]:
    rules = [rule for rule in RULES.values() if not rule.factored]
    numbers = ", ".join(f"k{camel(rule.name)}" for rule in rules)
    return [
        *(f"using {name} = {_dtypes(sets)};" for sets, name in SETS.items()),
        *(_rule_of(rule) for rule in rules),
        f"using ElementwiseRules = RuleList<{numbers}>;",
    ]


def _own(rule: Rule) -> list[Text]:
    """A rule's own texts, checked."""
    rule.check()
    texts = [Text(rule, member) for member in rule.functions]
    for text in texts:
        text.result([Kind(constant=name in rule.scalars) for name in text.arguments])
    update = texts[0]
    if update.returned != ["p", *rule.states]:
        update.refuse(update.last, f"the update returns {', '.join(['p', *rule.states])}")
    return texts


def _shared(own: dict[str, list[Text]]) -> dict[str, tuple[Text, set[str]]]:
    """The shared texts, each after the texts that it calls, with the names of the rules that use
    it."""
    found: dict[str, tuple[Text, set[str]]] = {}

    def visit(text: Text) -> None:
        for called in text.texts.values():
            below = Text(text.rule, called)
            visit(below)
            if called in text.rule.functions:
                continue
            other, users = found.setdefault(below.name, (below, set()))
            users.add(text.rule.name)
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
                f"{at(rule, rule.update)}: the rules of family {family!r} share their scalars, but "
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
    """A text as a member function: values are arguments, scalars are fields. A returned argument
    is updated in place, any other returned name is an output, a returned expression is the result.
    """
    rule = text.rule
    arguments = [name for name in text.arguments if name not in rule.scalars]
    outputs = [name for name in text.returned if name not in arguments]
    parameters = [f"T{'&' if name in text.returned else ''} {name}" for name in arguments]
    parameters += [f"T& {name}" for name in outputs]
    left_out: dict[Any, list[int]] = {}
    for member in rule.functions:
        names = member.__code__.co_varnames[: member.__code__.co_argcount]
        left_out[member] = [k for k, name in enumerate(names) if name in rule.scalars]
    result = "void" if text.returned else "bool" if text.is_condition() else "T"
    name = "update" if text.function is rule.update else text.name
    lines = text.lines({*arguments, *outputs}, left_out)
    return function(result, name, parameters, lines, " const")


def _rule_of(rule: Rule) -> str:
    dtypes = SETS.get(rule.dtypes) or _dtypes(rule.dtypes)
    return "\n".join(
        [
            "template <class T>",
            f"struct RuleOf<k{camel(rule.name)}, T> {{",
            f"  using type = {camel(_family(rule))}<T>;",
            f"  using dtypes = {dtypes};",
            f"  using stored = {_dtypes(rule.stored)};",
            f"  static constexpr int kStates = {len(rule.states)};",
            f"  static constexpr bool kOnlyDtypes = {str(rule.only_dtypes).lower()};",
            f"  static constexpr bool kInBlocks = {str(rule.in_blocks).lower()};",
            "};",
        ]
    )


def _dtypes(sets: tuple[tuple[str, ...], ...]) -> str:
    # A rule without states lists two dtypes; the parameter's stands in for the third.
    entries = [", ".join(f"k{camel(name)}" for name in (*row, row[0])[:3]) for row in sets]
    return f"DtypesList<{', '.join(f'Dtypes<{entry}>' for entry in entries)}>"
