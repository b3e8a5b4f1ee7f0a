"""The norm of the gradients by Triton's kernel, interpreted."""

import pytest
import torch

from tests.support.cases import DTYPES
from tests.support.norms import check_absent_and_strange, check_norms
from tests.support.sweeps import sweep

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy warns about inf and nan


@pytest.mark.parametrize("rule", ["adamw", "adafactor"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_are_those_of_float64(dtype, rule):
    check_norms("triton", dtype, [(), (7,), (0,), (5, 6)], rule=rule)


@pytest.mark.parametrize("dtype", sweep(DTYPES, DTYPES[1:2]), ids=str)
def test_gradients_of_several_units(dtype):
    check_norms("triton", dtype, [(32769,), (7,)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_squares_that_float32_cannot_hold_are_no_harm(dtype):
    check_norms("triton", dtype, [(7,), (300,)], (1e-25, 1e25, 1e-10, 1e10))


@pytest.mark.parametrize("dtype", sweep(DTYPES, DTYPES[:1]), ids=str)
def test_gradients_may_lie_at_any_address(dtype):
    check_norms("triton", dtype, [(7,), (4100,)], offset=1)


def test_absent_infinite_and_nan_gradients():
    check_absent_and_strange("triton")
