"""The C++ module refuses a bucket that the CPU walkers would misread."""

import pytest
import torch

from fusedstep import native
from fusedstep.backends.cpu import RULE_IDS
from fusedstep.rules import layout

FLOAT32, BFLOAT16, UNKNOWN = layout.FLOAT32, layout.BFLOAT16, 17
REST, NOISY, BENT = layout.REST16, layout.NOISY_BFLOAT16, layout.BENT_INT8


def bucket(
    rule="adamw",
    vectors=False,
    dtypes=(FLOAT32,) * 4,
    companions=None,
    table=True,
    fields=5,
    noise=False,
):
    numbers = torch.zeros(fields, dtype=torch.int64)
    number = RULE_IDS[rule] if isinstance(rule, str) else rule
    address = numbers.data_ptr()
    places = [0] * len(dtypes) if companions is None else list(companions)
    tables = (address if table else 0, 1, fields, address if noise else 0)
    return native.module.Bucket(number, False, vectors, list(dtypes), places, *tables)


def test_known_numbers_are_taken():
    assert bucket().scratch_bytes(1) == 0
    bucket("adafactor", dtypes=[FLOAT32] * 4, fields=8)
    bucket("adafactor", vectors=True, dtypes=[FLOAT32] * 3, fields=5)
    bucket("adafactor_momentum", dtypes=[FLOAT32] * 5, fields=9)
    bucket(dtypes=(REST, BFLOAT16, BENT, BENT), companions=(4, 0, 5, 6), fields=8)
    bucket(dtypes=(NOISY, BFLOAT16, NOISY, FLOAT32), noise=True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rule": -1}, "no rule has the number -1"),
        ({"rule": len(RULE_IDS)}, f"no rule has the number {len(RULE_IDS)}"),
        ({"dtypes": (FLOAT32, UNKNOWN, FLOAT32, FLOAT32)}, "no storage dtype of code 17"),
        ({"dtypes": (FLOAT32, NOISY, FLOAT32, FLOAT32)}, "gradient is stored in the code 4"),
        ({"dtypes": (NOISY, BFLOAT16, FLOAT32, FLOAT32)}, "noise, but has no rows of it"),
        ({"dtypes": (REST, BFLOAT16, FLOAT32, FLOAT32)}, "table's row .* is 5, expected 6"),
        (
            {"dtypes": (REST, BFLOAT16, FLOAT32, FLOAT32), "fields": 6},
            "companion of slot 0 .* cannot be at place 0",
        ),
        (
            {"dtypes": (FLOAT32, FLOAT32, FLOAT32, FLOAT32), "companions": (4, 0, 0, 0)},
            "companion of slot 0 .* cannot be at place 4",
        ),
        ({"companions": (0, 0)}, "number of companions of a tensor of adamw is 2, expected 4"),
        ({"dtypes": (FLOAT32, FLOAT32, FLOAT32, -1)}, "no storage dtype of code -1"),
        ({"dtypes": (FLOAT32,) * 3}, "number of dtypes of a tensor of adamw is 3, expected 4"),
        ({"dtypes": (FLOAT32,) * 7}, "number of dtypes of a tensor of adamw is 7, expected 4"),
        ({"fields": 6}, "length of a table's row of a tensor of adamw is 6, expected 5"),
        ({"vectors": True}, "adamw takes vectors like any other tensors"),
        ({"table": False}, "FakeTensorMode"),
        (
            {"rule": "adafactor", "vectors": True, "fields": 6},
            "number of dtypes .* is 4, expected 3",
        ),
    ],
    ids=str,
)
def test_wrong_numbers_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        bucket(**wrong)
