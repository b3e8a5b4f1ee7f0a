"""Changes in another package that can be taken back: attributes of objects, and items of dicts."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

ABSENT = object()


class Swap:
    """One change: `new` for an attribute, or for an item of a dict. `undo` puts back what was there
    before, or nothing."""

    def __init__(self, owner: Any, name: str, new: Any) -> None:
        self.owner, self.name, self.new = owner, name, new
        self.old: Any = ABSENT

    def _now(self) -> Any:
        # As it is stored: a static method of a class is one only before it is read.
        own = self.owner if isinstance(self.owner, dict) else vars(self.owner)
        return own.get(self.name, ABSENT)

    def _put(self, value: Any) -> None:
        if isinstance(self.owner, dict):
            if value is ABSENT:
                del self.owner[self.name]
            else:
                self.owner[self.name] = value
        elif value is ABSENT:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, value)

    def make(self) -> None:
        self.old = self._now()
        self._put(self.new)

    def undo(self) -> None:
        if self._now() is not self.new:
            owner = getattr(self.owner, "__qualname__", getattr(self.owner, "__name__", "a dict"))
            warnings.warn(
                f"fusedstep.unregister: {owner}.{self.name} was changed again after "
                "fusedstep.register, so it is left as it is.",
                stacklevel=4,
            )
            return
        self._put(self.old)


def make_all(swaps: Iterable[Swap]) -> list[Swap]:
    """Makes all changes, or none if one of them fails."""
    made: list[Swap] = []
    try:
        for swap in swaps:
            swap.make()
            made.append(swap)
    except BaseException:
        undo_all(made)
        raise
    return made


def undo_all(made: list[Swap]) -> None:
    """Takes changes back, the last one first."""
    while made:
        made.pop().undo()
