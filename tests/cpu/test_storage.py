"""Numbers are read and rounded as torch reads and rounds them: every number of 16 bits, and every
float32."""

import pytest
import torch

from fusedstep import native
from fusedstep.backends.cpu import DTYPE_CODES, RULE_IDS
from tests.support.cases import DTYPES

F32, BF16, F16, F64 = DTYPES


def stored(numbers, scale, dtype):
    """`scale * numbers` in `dtype`, by the rule `accumulate` on zeros."""
    sums = torch.zeros(numbers.shape, dtype=dtype)
    table = torch.tensor([[sums.data_ptr(), numbers.data_ptr(), numbers.numel()]])
    codes = [DTYPE_CODES[dtype], DTYPE_CODES[numbers.dtype]]
    rule, address = RULE_IDS["accumulate"], table.data_ptr()
    bucket = native.module.Bucket(rule, dtype == F64, False, codes, [0, 0], address, *table.shape)
    row, scalars = torch.zeros(1, dtype=torch.int64), torch.tensor([[1.0, scale]], dtype=F64)
    bucket.launch(row.data_ptr(), scalars.data_ptr(), 2, 1.0, torch.get_num_threads(), 0)
    return sums


def assert_rounded(numbers, scale, dtype):
    wide = F64 if dtype == F64 else F32
    expected = (numbers.to(wide) * torch.tensor(scale, dtype=wide)).to(dtype)
    found = stored(numbers, scale, dtype)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(0.0), expected.nan_to_num(0.0))


@pytest.mark.parametrize("scale", [1.0, 0.3, 1 + 2.0**-9, 3e-5, 7e4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("source", [BF16, F16], ids=str)
def test_every_number_of_16_bits(source, dtype, scale):
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(source)
    assert_rounded(numbers, scale, dtype)
    for count in range(1, 17):  # the end of a row
        assert_rounded(numbers[20000 : 20000 + count], scale, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_every_float32(dtype):
    for first in range(-(2**31), 2**31, 2**24):
        numbers = torch.arange(first, first + 2**24, dtype=torch.int64).to(torch.int32).view(F32)
        assert_rounded(numbers, 1.0, dtype)
