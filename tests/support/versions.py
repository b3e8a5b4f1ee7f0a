"""What older versions of torch lack, for tests."""

import pytest
import torch
from torch import Tensor

TORCH = tuple(map(int, torch.__version__.split(".")[:2]))

# What C++ asks about tensors, since torch 2.10. With older ones it asks Python.
HAS_EXCHANGE = hasattr(Tensor, "__dlpack_c_exchange_api__")

# What FSDP2 of torch 2.6 says on a CPU, whatever the optimizer is.
NO_STREAMS = "'Stream' object has no attribute 'record_event'"


def adagrad_takes_later_groups() -> bool:
    """Whether torch's Adagrad steps a group that was added later. That of torch 2.11 does not: it
    makes states in its constructor only."""
    first, later = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = torch.optim.Adagrad([first])
    optimizer.add_param_group({"params": [later]})
    later.grad = torch.zeros(1)
    try:
        optimizer.step()
    except KeyError:
        return False
    return True


def skip_without_fsdp2(failed: str) -> None:
    """Skips a test that failed because FSDP2 of this torch does not run on a CPU."""
    if TORCH < (2, 7) and NO_STREAMS in failed:
        pytest.skip("FSDP2 of torch 2.6 does not run on a CPU")
