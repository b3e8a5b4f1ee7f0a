"""Triton's kernels with a weight decay that takes most of a parameter."""

import pytest
import torch

from tests.support.cases import each
from tests.support.decays import STRONG
from tests.support.problems import Problem
from tests.support.sweeps import sweep

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy warns about inf and nan


@pytest.mark.parametrize(
    "dtype",
    sweep([torch.float32, torch.float64], [torch.float32]),
    ids=str,
)
@each(sweep(STRONG, STRONG[::2]))
def test_strong_decays(case, dtype):
    Problem(case, [(7,), (33, 17), (3, 5, 7)], (dtype,)).check()
