"""Settings that must be made before torch is loaded; tests that need a GPU, and how many those are.

Without a GPU such tests are collected, skipped and counted in the last line. Their bodies take the
device from here: with FUSEDSTEP_GPU_TESTS_ON=cpu those that ask a GPU for nothing else run on the
CPU, with the reference, or with Triton's interpreter if TRITON_INTERPRET=1.
"""

import os

import pytest

# A test run may share its cores: threads that wait by spinning would take them from each other.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Loads torch, so after that setting.
pytest_plugins = ["tests.support.fake_device"]

GPU_TESTS_ON = os.environ.get("FUSEDSTEP_GPU_TESTS_ON", "cuda")
NEEDS_A_GPU = "needs a GPU"


def has_gpu():
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(items):
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if needing and GPU_TESTS_ON == "cuda" and not has_gpu():
        for item in needing:
            item.add_marker(pytest.mark.skip(reason=NEEDS_A_GPU))


def pytest_terminal_summary(terminalreporter):
    skipped = [report.longrepr for report in terminalreporter.stats.get("skipped", ())]
    count = sum(isinstance(why, tuple) and why[2].endswith(NEEDS_A_GPU) for why in skipped)
    if count:
        terminalreporter.write_line(f"{count} tests need a GPU and were not run")


@pytest.fixture
def device():
    """Where the tests for GPUs run."""
    import torch

    return torch.device(GPU_TESTS_ON)


@pytest.fixture
def gpu(device):
    """The same for tests that cannot do without: graphs, streams, the allocator, the profiler."""
    if device.type != "cuda":
        pytest.skip(NEEDS_A_GPU)
    return device
