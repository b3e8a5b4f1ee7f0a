"""The current device and stream, as a step reads them, on a torch.cuda that is faked: no GPU."""

import types

import pytest
import torch

from fusedstep.gpu import tables
from fusedstep.plan import devices

FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)


@pytest.fixture
def switched(monkeypatch):
    """The switches of the current device, which is the first one."""
    found = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "_exchange_device", lambda index: found.append(index) or 0)
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", found.append)
    return found


@pytest.fixture(autouse=True)
def _forget():
    tables._reader_of_streams.cache_clear()
    devices._asks_for_captures.cache_clear()
    yield
    tables._reader_of_streams.cache_clear()
    devices._asks_for_captures.cache_clear()


def test_only_another_device_is_switched_to_and_left_again(switched):
    with tables.on_device(FIRST), tables.on_device(torch.device("cpu")):
        assert not switched
    with tables.on_device(SECOND):
        assert switched == [1]
    assert switched == [1, 0]


def test_a_capture_is_asked_for_on_the_device_itself(switched, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: switched == [1])
    assert not devices.is_capturing(FIRST)
    assert devices.is_capturing(SECOND) and switched == [1, 0]


@pytest.mark.parametrize("has_numbers", [True, False])
def test_the_current_stream_of_cuda_is_its_number(has_numbers, monkeypatch):
    def stream(device):
        return types.SimpleNamespace(cuda_stream=70 + device.index)

    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    monkeypatch.delattr(torch._C, "_cuda_getCurrentRawStream", raising=False)
    if has_numbers:
        monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda k: 70 + k, raising=False)
    assert [tables.current_stream(device) for device in (FIRST, SECOND)] == [70, 71]
    assert tables.stream_object(SECOND).cuda_stream == 71
    assert tables.current_stream(torch.device("cpu")) is None
