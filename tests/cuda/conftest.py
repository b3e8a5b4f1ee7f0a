"""Fixtures: the CUDA backend on the CUDA simulator, with scratch that starts as nan, and units so
small that small matrices need several."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch

from fusedstep.backends import cuda
from fusedstep.gpu import work
from tests.support.cuda_on_cpu import SMALL_UNITS
from tests.support.cuda_on_ptx import fill_with_nan, on_simulator

REAL_CURRENT = work.DeviceLauncher.current


def poisoned(self: Any, inputs: Any) -> dict[str, Any]:
    fill_with_nan(self)
    return REAL_CURRENT(self, inputs)


@pytest.fixture
def simulator() -> Iterator[Any]:
    """The simulator's settings. `backend="simcuda"` takes CPU tensors. Scratch starts as nan in
    every step, so that a missing sum shows."""
    with mock.patch.object(work.DeviceLauncher, "current", poisoned), on_simulator() as settings:
        yield settings


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "UNIT_SIZES", SMALL_UNITS)


@pytest.fixture
def scratch_of_zeros(simulator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scratch starts as zeros, as if the units that are not launched had found only zeros."""

    def zeros(self: Any, count: int, dtype: torch.dtype) -> torch.Tensor:
        self.kept.append(torch.zeros(count, dtype=dtype))
        return self.kept[-1]

    monkeypatch.setattr(work.DeviceLauncher, "current", REAL_CURRENT)
    monkeypatch.setattr(work.DeviceLauncher, "scratch", zeros)
