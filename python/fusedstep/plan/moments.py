"""The old moments of sharded tensors, to put back if a step is not taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .copies import Copies
from .launcher import Launcher


class Moments:
    """The moments of sharded tensors, which a step writes before it knows that all processes take
    it. If they do not, the old values are put back."""

    def __init__(self, launchers: list[Launcher]) -> None:
        # Momentum and parameters are written last.
        slots = {"matrix": (2, 3), "vector": (2,)}
        states = [
            member.flat(slot)
            for launcher in launchers
            for member in launcher.bucket.members
            for slot in slots[launcher.bucket.kind]
        ]
        self._copies = Copies(states, _room_for(states))

    @contextmanager
    def restored_after_errors(self) -> Iterator[None]:
        self._copies.there()
        try:
            yield
        except BaseException:
            self._copies.back()
            raise


def _room_for(states: list[Tensor]) -> list[Tensor]:
    """Tensors like these, in one piece of memory for each dtype and device."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for state in states:
        kinds.setdefault((state.dtype, state.device), []).append(state)
    made: dict[int, Tensor] = {}
    for (dtype, device), own in kinds.items():
        sizes = [state.numel() for state in own]
        room = torch.empty(sum(sizes), dtype=dtype, device=device)
        for state, part in zip(own, room.split(sizes), strict=True):
            made[id(state)] = part.view(state.shape)
    return [made[id(state)] for state in states]
