"""Copies many small tensors at once, there and back. On a host, torch takes 1 us for each."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .. import native
from . import devices


class Copies:
    """Pairs of tensors with equal shapes and dtypes, which stay where they are."""

    def __init__(self, sources: list[Tensor], places: list[Tensor]) -> None:
        in_memory: list[tuple[Tensor, Tensor]] = []
        others: list[tuple[Tensor, Tensor]] = []
        for source, place in zip(sources, places, strict=True):
            if source.numel():
                is_run = native.module is not None and _are_runs(source, place)
                (in_memory if is_run else others).append((source, place))
        self._kept = in_memory
        self._sources = [source for source, _ in others]
        self._places = [place for _, place in others]
        self._runs: Any = None
        if in_memory:
            runs = [
                (source.data_ptr(), place.data_ptr(), source.nbytes) for source, place in in_memory
            ]
            self._runs = native.module.Copies(runs)

    def __len__(self) -> int:
        return len(self._kept) + len(self._sources)

    def there(self) -> None:
        """Copies the sources to their places."""
        if self._runs is not None:
            self._runs.there()
        if self._sources:
            torch._foreach_copy_(self._places, self._sources)

    def back(self) -> None:
        """Copies the places to their sources."""
        if self._runs is not None:
            self._runs.back()
        if self._sources:
            torch._foreach_copy_(self._sources, self._places)


def _are_runs(source: Tensor, place: Tensor) -> bool:
    """Whether both are runs of bytes that the host can copy."""
    return source.dtype == place.dtype and all(
        type(own) is Tensor
        and devices.on_host(own)
        and own.is_contiguous()
        and not own.is_neg()
        and own.data_ptr() != 0
        for own in (source, place)
    )


def joined(runs: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """The same copies in fewer runs. Each run is its start, its end, and the place of its start."""
    if not runs:
        return []
    starts = [0] + [
        index
        for index, (before, run) in enumerate(pairwise(runs), 1)
        if run[0] != before[1] or run[2] - before[2] != before[1] - before[0]
    ]
    return [
        (runs[first][0], runs[last - 1][1], runs[first][2])
        for first, last in pairwise([*starts, len(runs)])
    ]
