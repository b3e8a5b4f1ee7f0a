"""Prints csrc/rules/layout.h from `fusedstep.rules.layout`, and csrc/rules/fingerprint.h."""

from __future__ import annotations

from ..rules import layout, noise
from ..rules.fingerprint import fingerprint
from .text import camel, function, header

CONSTANTS = "// Order of sums, codes of storage, kinds of work: python/fusedstep/rules/layout.py."
NOISE = """\
// What noise needs to know of a tensor: python/fusedstep/rules/noise.py.
struct NoiseRow {{
  int64_t {fields};
}};
constexpr uint32_t kNoiseMultipliers[] = {{{multipliers}}};  // by the slot"""
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
    for name in ("ITEM_BYTES", "COMPANION_BYTES"):
        sizes = ", ".join(map(str, getattr(layout, name)))
        constants.append(
            f"constexpr int k{camel(name)}[] = {{{sizes}}};  // by the code of storage"
        )
    multipliers = ", ".join(f"{number}u" for number in noise.MULTIPLIERS)
    noise_row = NOISE.format(fields=", ".join(layout.NOISE), multipliers=multipliers)
    rows = [ROW, *(_row(kind) for kind in layout.SLOTS)]
    parts = ["\n".join([CONSTANTS, *constants]), noise_row, "\n".join(rows), *_slots_of()]
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
