"""Instructions for each element in the hot loops of the machine code for sm_90, from the budgets of
every release of Triton. Issue slots are what a loop runs out of next, once it is near the speed of
memory."""

import pytest

from tests.support import budgets

# The most instructions for each element, those of rare cases included: a gradient scale other than
# 1, slow quotients. A number falls when a loop gets better.
MOST = {
    "STATISTICS 256": {"bf16": 16, "fp32": 24.5},
    "STATISTICS 1024": {"bf16": 13, "fp32": 12.5},
    "STATISTICS 2048": {"bf16": 13, "fp32": 12.5},
    "STATISTICS 4096": {"bf16": 13, "fp32": 13},
    "STATISTICS 8192": {"bf16": 13, "fp32": 13},
    "SUM_U2 1024": {"bf16": 14, "fp32": 13},
    "SQUARES 1024": {"bf16": 6, "fp32": 6},
    "UPDATE 1024": {"bf16": 26, "fp32": 28},
    "adamw": {"bf16": 58, "fp32": 55},
    "gradient_squares": {"fp32": 10},
}
# The most barriers of a pass: one for the tile that was loaded ahead, two for the sums along rows
# of several warps. They are exchanged once for all rows of a tile.
MOST_BARRIERS = {name: 3 for name in MOST if name.startswith("STATISTICS")}
MOST_BARRIERS["STATISTICS 256"] = 5  # in float32 two warps have one row
CASES = [(name, dtype) for name, numbers in MOST.items() for dtype in numbers]

each_release = pytest.mark.parametrize("release", budgets.TRITON_RELEASES)


@each_release
@pytest.mark.parametrize(("kernel", "dtype"), CASES)
def test_a_hot_loop_has_few_instructions_for_each_element(kernel, dtype, release):
    found = budgets.of_triton(release).of(kernel, f"{dtype} instructions")
    assert MOST[kernel][dtype] / 1.25 < found <= MOST[kernel][dtype]


@each_release
@pytest.mark.parametrize("kernel", MOST_BARRIERS)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_first_read_waits_seldom_for_the_other_threads(kernel, dtype, release):
    found = budgets.of_triton(release).of(kernel, f"{dtype} barriers")
    assert 0 < found <= MOST_BARRIERS[kernel]
