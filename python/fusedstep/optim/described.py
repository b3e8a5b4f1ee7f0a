"""Which backend runs where, and why: `backends()` and the repr of every optimizer."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import cast

import torch

from .. import backends as known
from ..plan import shards
from .mastered import MasteredOptimizer


@dataclass(frozen=True)
class Running:
    """The backend of the parameters on one device.

    Attributes:
        device: the device.
        backend: the name of the backend; empty if none can run.
        parameters: how many it updates.
        has_run: whether it ran the last step. If not, it is what a step would use.
        why: who chose it, and why the backends that `auto` prefers cannot run.
    """

    device: torch.device
    backend: str
    parameters: int
    has_run: bool
    why: str

    def __str__(self) -> str:
        runs = ("runs on" if self.has_run else "would run on") if self.backend else "cannot run on"
        count = "1 parameter" if self.parameters == 1 else f"{self.parameters} parameters"
        return f"{self.backend or 'a step'} {runs} {self.device} ({count}): {self.why}"


class DescribedOptimizer(MasteredOptimizer):
    """Says which backend runs where, and why."""

    def backends(self) -> list[Running]:
        """The backend of each device, with the reason: of the last step, or, before the first one,
        what a step would use.

        Example:
            >>> from fusedstep.optim import AdamW
            >>> opt = AdamW([torch.nn.Parameter(torch.zeros(3))], backend="reference")
            >>> for running in opt.backends():
            ...     print(running)
            reference would run on cpu (1 parameter): backend='reference'
        """
        if self._plan is not None and self._plan.launchers:
            ran = Counter[tuple[torch.device, str]]()
            for own in self._plan.launchers:
                ran[own.bucket.device, own.backend.name] += len(own.bucket.members)
            return [
                Running(device, name, count, True, self._why(device, name))
                for (device, name), count in ran.items()
            ]
        params = (param for group in self.param_groups for param in group["params"])
        devices = Counter(shards.local(param).device for param in params)
        return [self._coming(device, count) for device, count in devices.items()]

    def _coming(self, device: torch.device, count: int) -> Running:
        try:
            name = known.choose(self.backend, device, f"a parameter on {device}").name
        except (RuntimeError, ValueError) as error:
            return Running(device, "", count, False, str(error))
        return Running(device, name, count, False, self._why(device, name))

    def _why(self, device: torch.device, name: str) -> str:
        source, asked = "backend", cast("str | None", self.backend)
        if asked is None:
            source, asked = known.VARIABLE, os.environ.get(known.VARIABLE) or None
        if asked is not None and asked != "auto":
            return f"{source}={asked!r}"
        better = known.why_not_before(name, device)
        return "auto" + "".join(f"; {other}: {reason}" for other, reason in better.items())

    def __repr__(self) -> str:
        lines = "".join(f"\n{running}" for running in self.backends())
        return f"{super().__repr__()}{lines}"
