"""The CUDA kernels on the simulator, with a weight decay that takes most of a parameter."""

import pytest
import torch

from tests.support.cases import each
from tests.support.cuda_on_cpu import check
from tests.support.decays import STRONG
from tests.support.problems import Problem

pytestmark = pytest.mark.usefixtures("simulator")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@each(STRONG)
def test_strong_decays(case, dtype):
    check(Problem(case, [(7,), (33, 17), (3, 5, 7), (3, 2064)], (dtype,)))
