"""The CUDA kernels where weight decay takes most of a parameter, on the simulator."""

import pytest
import torch

from cases import each
from cuda_on_cpu import check
from decays import STRONG
from triton_on_cpu import Problem

pytest_plugins = ["cuda_fixtures"]
pytestmark = pytest.mark.usefixtures("simulator")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@each(STRONG)
def test_strong_decays(case, dtype):
    check(Problem(case, [(7,), (33, 17), (3, 5, 7)], (dtype,)))
