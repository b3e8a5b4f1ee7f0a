"""Prints csrc/rules/layout.h from `fusedstep.rules.layout`, and csrc/rules/fingerprint.h."""

from __future__ import annotations

from ..rules import layout
from ..rules.fingerprint import fingerprint
from .text import camel, function, header

CONSTANTS = "// Order of sums, codes of dtypes, kinds of work: python/fusedstep/rules/layout.py."
ROW = """\
// A tensor's row of the table (plan.h): the addresses of its slots, then its sizes. A rule's own
// states, if any, start at the last slot."""
FINGERPRINT = """\
// A hash of the files in python/fusedstep/rules. Python refuses a module with another hash.
constexpr char kFingerprint[] = "{}";"""


def layout_header() -> str:
    """The whole text of csrc/rules/layout.h."""
    constants = [
        f"constexpr int k{camel(name)} = {value};"
        for name, value in vars(layout).items()
        if name.isupper() and isinstance(value, int)
    ]
    sizes = ", ".join(map(str, layout.ITEM_BYTES))
    constants.append(f"constexpr int kItemBytes[] = {{{sizes}}};  // by the code of a dtype")
    rows = [ROW, *(_row(kind) for kind in layout.SLOTS)]
    parts = ["\n".join([CONSTANTS, *constants]), "\n".join(rows), *_slots_of()]
    return header("Constants shared with Python.", ["../numeric.h"], parts, unnamed=True)


def fingerprint_header() -> str:
    """The whole text of csrc/rules/fingerprint.h."""
    return header("The fingerprint of the rules.", [], [FINGERPRINT.format(fingerprint())])


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
        "// How many slots a row of `fields` numbers has.\n"
        + function("int64_t", "elementwise_slots", arguments, lines),
        function("int64_t", "factored_slots", factored, of_factored),
    ]
