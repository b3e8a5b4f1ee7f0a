"""Which kinds of work the host leaves out: it decides on Python numbers as kernels do on theirs."""

import itertools
import math

import pytest
import torch

from fusedstep.gpu import work
from fusedstep.plan.bucket import Bucket
from fusedstep.plan.rows import HostRows
from fusedstep.rules import RULES

RULE = RULES["adafactor"]
CAP, SCALED = (1 + RULE.scalars.index(name) for name in ("cap", "scaled"))
EDGE = work.ROUNDS_TO_INFINITY
CAPS = [0.0, -math.inf, math.inf, math.nan, EDGE, -EDGE, math.nextafter(EDGE, 0.0), 1e300, 3.4e38]
PAIRS = list(itertools.product(CAPS, [0.0, 1.0, -1.0, math.nan]))


@pytest.mark.parametrize("mode", [None, "rows"])
@pytest.mark.parametrize("shown", [False, True], ids=["", "rms is shown"])
@pytest.mark.parametrize("copies", [1, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_host_decides_like_the_kernels(dtype, copies, shown, mode):
    bucket = Bucket(RULE, "matrix", torch.device("cpu"), 4 * (dtype,), mode)
    bucket.rms = torch.zeros(1) if shown else None
    for given in ([pair] * count for pair in PAIRS for count in (1, copies)):
        check(bucket, given, dtype)
    for given in itertools.product(PAIRS, PAIRS):
        check(bucket, copies * given, dtype)


def check(bucket, given, dtype):
    rows = torch.zeros(len(given), 1 + len(RULE.scalars), dtype=torch.float64)
    rows[:, [CAP, SCALED]] = torch.tensor(given, dtype=torch.float64)
    scaled = rows[:, SCALED] > 0
    expected = {
        "SUM_U2": rows[:, CAP].to(dtype).isinf().all(),
        "SQUARES": not scaled.any() and not (bucket.mode and bucket.rms is not None),
        "STORE_RMS": bucket.rms is None or scaled.all(),
    }
    assert work.idle_kinds(bucket, HostRows(rows.tolist())) == {
        kind for kind, idle in expected.items() if idle
    }
