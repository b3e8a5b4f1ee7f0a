"""The C++ module refuses a bucket that the CPU walkers would misread."""

import pytest
import torch

from fusedstep import native
from fusedstep.backends.cpu import RULE_IDS

FLOAT32, UNKNOWN = 0, 7


def bucket(rule="adamw", vectors=False, dtypes=(FLOAT32,) * 4, table=True, fields=5):
    numbers = torch.zeros(fields, dtype=torch.int64)
    number = RULE_IDS[rule] if isinstance(rule, str) else rule
    address = numbers.data_ptr() if table else 0
    return native.module.Bucket(number, False, vectors, list(dtypes), address, 1, fields, 0, 0, 0)


def test_known_numbers_are_taken():
    assert bucket().scratch_bytes(1) == 0
    bucket("adafactor", dtypes=[FLOAT32] * 4, fields=8)
    bucket("adafactor", vectors=True, dtypes=[FLOAT32] * 3, fields=5)
    bucket("adafactor_momentum", dtypes=[FLOAT32] * 5, fields=9)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rule": -1}, "no rule has the number -1"),
        ({"rule": len(RULE_IDS)}, f"no rule has the number {len(RULE_IDS)}"),
        ({"dtypes": (FLOAT32, UNKNOWN, FLOAT32, FLOAT32)}, "no storage dtype of code 7"),
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
