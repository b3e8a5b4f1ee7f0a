"""A pytest plugin: without nvcc, tests with the fixture `nvcc` are skipped and counted."""

from __future__ import annotations

from typing import Any

import pytest

from .nvcc import NEEDS_NVCC, tool


@pytest.fixture(scope="session")
def nvcc() -> str:
    found = tool("nvcc")
    if found is None:
        pytest.skip(NEEDS_NVCC)
    return found


def pytest_terminal_summary(terminalreporter: Any) -> None:
    skipped = [report.longrepr for report in terminalreporter.stats.get("skipped", ())]
    count = sum(isinstance(why, tuple) and why[2].endswith(NEEDS_NVCC) for why in skipped)
    if count:
        terminalreporter.write_line(f"{count} tests need nvcc and were not run")
