"""Settings that must be made before torch is loaded, and the device of the tests that need a GPU.

Without a GPU such tests are skipped, and the last line says how many. Their device comes from here.
With FUSEDSTEP_GPU_TESTS_ON=cpu they run on the CPU where they need no real GPU, with the reference,
or with Triton's interpreter if TRITON_INTERPRET=1.
"""

import os

import pytest

# Test processes may share cores, and a thread that waits by spinning would block the others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# This loads torch, so it comes after the setting.
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
    """The device of the tests for GPUs."""
    import torch

    return torch.device(GPU_TESTS_ON)


@pytest.fixture
def gpu(device):
    """The same for tests that need a real GPU: graphs, streams, the allocator, the profiler."""
    if device.type != "cuda":
        pytest.skip(NEEDS_A_GPU)
    return device
