"""Finds the source locations of masked loads that have an `other`, in Triton's IR."""

from __future__ import annotations

import re

from .syntax import Location

LOAD = re.compile(r"tt\.load ((?:%[\w#]+(?:, )?)+).* loc\((#loc\d*)\)$", re.M)
ALIAS = re.compile(r"^(#loc\d*) = loc\((.*)\)$", re.M)
PLACE = re.compile(r'"([^"]*)":(\d+):(\d+)')


def loads_with_other(ttgir: str) -> frozenset[Location]:
    """The locations of each tt.load with three operands: pointer, mask and other."""
    aliases = dict(ALIAS.findall(ttgir))
    found: set[Location] = set()
    for operands, alias in LOAD.findall(ttgir):
        if operands.count("%") == 3:
            found |= places_of(alias, aliases)
    return frozenset(found)


def places_of(alias: str, aliases: dict[str, str]) -> set[Location]:
    """The innermost source locations of an alias. Of an inlined call, that is the callee's line, as
    in PTX."""
    text = aliases.get(alias, "")
    direct = PLACE.search(text)
    if direct:
        return {(direct[1], int(direct[2]), int(direct[3]))}
    inner = re.findall(r"#loc\d*", text)
    if text.startswith("callsite"):
        inner = inner[:1]
    return set().union(*(places_of(one, aliases) for one in inner))
