"""Where in the source Triton's masked loads stand that have an `other`, read from its own IR."""

from __future__ import annotations

import re

from .syntax import Location

LOAD = re.compile(r"tt\.load ((?:%[\w#]+(?:, )?)+).* loc\((#loc\d*)\)$", re.M)
ALIAS = re.compile(r"^(#loc\d*) = loc\((.*)\)$", re.M)
PLACE = re.compile(r'"([^"]*)":(\d+):(\d+)')


def loads_with_other(ttgir: str) -> frozenset[Location]:
    """Locations of tt.load with pointer, mask and other."""
    aliases = dict(ALIAS.findall(ttgir))
    found: set[Location] = set()
    for operands, alias in LOAD.findall(ttgir):
        if operands.count("%") == 3:
            found |= places_of(alias, aliases)
    return frozenset(found)


def places_of(alias: str, aliases: dict[str, str]) -> set[Location]:
    """The innermost places that an alias stands for: PTX names the callee's line, too."""
    text = aliases.get(alias, "")
    direct = PLACE.search(text)
    if direct:
        return {(direct[1], int(direct[2]), int(direct[3]))}
    inner = re.findall(r"#loc\d*", text)
    if text.startswith("callsite"):
        inner = inner[:1]
    return set().union(*(places_of(one, aliases) for one in inner))
