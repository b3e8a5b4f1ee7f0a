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
def processes(request):
    """So many processes as the test asks for. Tests with the same number come together."""
    own = Processes(request.param)
    yield own
    own.close()
