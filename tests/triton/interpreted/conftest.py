"""Triton decides at import whether it interprets, so these tests need a separate process:

    TRITON_INTERPRET=1 python -m pytest tests/triton/interpreted

Without the variable, or with a Triton that is too old for the kernels, no test here is collected.
"""

import os

import pytest

from fusedstep.backends.triton import TritonBackend

why_absent = TritonBackend().why_absent

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED and not why_absent() else ["test_*.py"]


def pytest_sessionfinish(session):
    if INTERPRETED and why_absent() and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        print(why_absent())
        session.exitstatus = pytest.ExitCode.OK
