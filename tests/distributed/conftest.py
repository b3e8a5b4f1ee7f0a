"""The processes that the tests of this folder run in."""

import pytest
import torch

from tests.support.processes import Processes


def pytest_collection_modifyitems(items):
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        for item in items:
            if "processes" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason="this torch has no gloo"))


@pytest.fixture(scope="session")
def started():
    """The processes that tests have started, by their number. A fixture that has a parameter is
    made anew for each set of parameters of a test, so the processes are kept here."""
    own = {}
    yield own
    for processes in own.values():
        processes.close()


@pytest.fixture
def processes(request, started):
    """So many processes as the test asks for."""
    return started.setdefault(request.param, Processes(request.param))
