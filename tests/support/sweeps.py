"""Long lists of parameters: `make test` takes some, `make test-all` takes all."""

from collections.abc import Iterable
from typing import Any

import pytest


def sweep(values: Iterable[Any], usual: Iterable[Any]) -> list[Any]:
    """The values; all but the usual ones are slow. A tuple stands for several parameters."""
    kept = list(usual)
    return [own if own in kept else _slow(own) for own in values]


def _slow(own: Any) -> Any:
    return pytest.param(*(own if isinstance(own, tuple) else (own,)), marks=pytest.mark.slow)
