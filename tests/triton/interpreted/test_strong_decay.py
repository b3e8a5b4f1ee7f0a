"""Triton's kernels with a weight decay that takes most of a parameter."""

import pytest
import torch

from tests.support.cases import each
from tests.support.decays import STRONG
from tests.support.problems import Problem

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy warns about inf and nan


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)],
    ids=["float32", "float64"],
)
@each(STRONG)
def test_strong_decays(case, dtype):
    Problem(case, [(7,), (33, 17), (3, 5, 7)], (dtype,)).check()
