"""What older versions of torch lack, for tests."""

import pytest
import torch
from torch import Tensor

TORCH = tuple(map(int, torch.__version__.split(".")[:2]))

# C++ watches tensors of a torch that has this. Older ones are watched by Python, with more calls.
HAS_EXCHANGE = hasattr(Tensor, "__dlpack_c_exchange_api__")

# torch 2.11 makes no Adagrad states for groups that are added later, and its step fails; 2.13 does.
ADAGRAD_ADDS_GROUPS = "add_param_group" in vars(torch.optim.Adagrad)

# What FSDP2 of torch 2.6 says on a CPU, whatever the optimizer is.
NO_STREAMS = "'Stream' object has no attribute 'record_event'"


def skip_without_fsdp2(failed: str) -> None:
    """Skips a test that failed because FSDP2 of this torch does not run on a CPU."""
    if TORCH < (2, 7) and NO_STREAMS in failed:
        pytest.skip("FSDP2 of torch 2.6 does not run on a CPU")
