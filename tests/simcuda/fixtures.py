"""Fixtures: the sample kernels and the simulator's controls, which are reset after each test."""

from __future__ import annotations

import pytest

from . import load
from .samples import built


@pytest.fixture(scope="module")
def sample_modules():
    return load(built("plain"), "_samples")


@pytest.fixture
def samples(sample_modules):
    yield sample_modules[0]
    sample_modules[1].reset()


@pytest.fixture
def controls(sample_modules):
    yield sample_modules[1]
    sample_modules[1].reset()
