"""Low-precision storage in Triton's kernels, interpreted: elementwise rules have the reference's
bits, factored ones are as near to float64 as the reference, with the same noise."""

import pytest
import torch

from tests.support.cases import CASES
from tests.support.stored_cases import PAIRS, STORED, assert_same_bits
from tests.support.stored_triton import assert_differs, check, in_runs, problem_of
from tests.support.sweeps import sweep

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy warns about inf and nan

CASE = {case.name: case for case in CASES}
OPTIONS = {stored.name: stored for stored in STORED}
ADAMW, MOMENTUM = CASE["adamw"], CASE["hf-adafactor-momentum"]
# torch's Adafactor takes eps from the dtype, so its exact run would be another problem.
VALUES = [pair for pair in PAIRS if pair[0].name != "adafactor"]
SHAPES = [(7,), (33, 17), (40, 128)]
# Tiny matrices, a batch with whole blocks, rows in two chunks, rows of several tiles.
MORE = [(3, 5, 7), (2, 16, 128), (2, 2176), (4, 1152)]

USUAL = [(ADAMW, stored) for stored in STORED if stored.name != "noisy-f32-states"]
USUAL += [(CASE["hf-adafactor"], OPTIONS["rest8-bf16-states"]), (MOMENTUM, OPTIONS["int8-noisy"])]
# No state, a first state without a sign, and states that do not start with 0.
USUAL += [(CASE["sgd"], OPTIONS["rest8-bf16-states"]), (CASE["sgd"], OPTIONS["noisy"])]
USUAL += [(CASE["rmsprop"], OPTIONS["int8-noisy"]), (CASE["rprop"], OPTIONS["int8"])]


@pytest.mark.parametrize(("case", "stored"), sweep(VALUES, USUAL), ids=str)
def test_values(case, stored):
    check(case, stored, SHAPES)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "stored"), VALUES, ids=str)
def test_more_shapes(case, stored):
    check(case, stored, SHAPES + MORE, steps=3)


@pytest.mark.parametrize(
    ("case", "stored"),
    sweep(
        [pair for pair in VALUES if pair[0] in (ADAMW, MOMENTUM)],
        [(ADAMW, OPTIONS[name]) for name in ("int8-noisy", "rest16-noisy-states")],
    ),
    ids=str,
)
def test_tensors_at_any_address(case, stored):
    check(case, stored, SHAPES, offset=1)


# Bits that are strange to a rounding: the largest finite numbers, those that round to infinity,
# infinities, nans with any payload, the smallest numbers, ties.
STRANGE = [
    *(0x7F7FFFFF, 0x7F7F8000, 0x7F7F7FFF, 0x7F7F0000, 0x7F7F0001, 0x7F800000, 0x7F800001),
    *(0x7FC00000, 0x7FFFFFFF, 0x7FBFFFFF, 0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x00800000),
    *(0x3F7FFFFF, 0x3F807FFF, 0x3F808000, 0x3F808001, 0x3F80FF80),
]


def with_strange_numbers(optimizer, params, step):
    """In the last gradients. A block of 128 numbers has only some of them, so that most scales stay
    finite."""
    bits = torch.tensor([*STRANGE, *(own - 2**31 for own in STRANGE)], dtype=torch.int64)
    numbers = bits.to(torch.int32).view(torch.float32)
    for param in params if step == 1 else ():
        flat = param.grad.view(-1)
        places = torch.arange(min(len(numbers), flat.numel() // 2)) * (flat.numel() // 50 or 1)
        flat[places] = numbers[: len(places)].to(flat.dtype)


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_strange_numbers(stored):
    problem = problem_of(ADAMW, stored, [(50,), (33, 17), (40, 128)], prepare=with_strange_numbers)
    assert_same_bits(*problem.run("triton"), *problem.run("reference"))


# first, cols, row stride, rows, matrix stride: runs shorter than a tile and longer, single numbers,
# several matrices, places beyond 32 bits.
RUNS = [
    (5, 6, 11, 4, 1000),
    (2**32 - 3, 1, 5, 7, 77),
    (2**40, 700, 2**33 + 1, 2, 2**35),
    (0, 1_000_000, 0, 1, 0),
]


@pytest.mark.parametrize(
    ("first", "cols", "row_stride", "rows", "matrix_stride"), sweep(RUNS, RUNS[:3])
)
@pytest.mark.parametrize("case", [ADAMW, CASE["hf-adafactor"]], ids=str)
def test_numbers_that_lie_apart_in_the_whole_tensor(
    case, first, cols, row_stride, rows, matrix_stride
):
    with in_runs(first, cols, row_stride, rows, matrix_stride):
        check(case, OPTIONS["noisy"], [(7,), (33, 17), (3, 5, 7)], steps=1)


def test_the_place_in_the_whole_tensor_changes_the_noise():
    """A fault, to show that the test before it would see one."""
    problem = problem_of(ADAMW, OPTIONS["noisy"], [(33, 17)], steps=1)
    with in_runs(0, 17, 17, 33, 0):
        found = problem.run("triton")
    with in_runs(0, 17, 18, 33, 0):
        assert_differs(found, problem.run("triton"))


def test_a_step_with_an_infinity_found_changes_nothing():
    kept = {}

    def find(optimizer, params, step):
        if step == 1:
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(1.0)
            for index, param in enumerate(params):
                tensors = {**optimizer.state[param], "p": param}
                kept.update({(index, k): torch.as_tensor(v).clone() for k, v in tensors.items()})

    for case in (ADAMW, MOMENTUM):
        kept.clear()
        problem = problem_of(case, OPTIONS["int8-noisy"], [(7,), (40, 128)], prepare=find)
        optimizer, params = problem.run("triton")
        for (index, key), value in kept.items():
            own = params[index] if key == "p" else optimizer.state[params[index]][key]
            assert key == "step" or torch.equal(torch.as_tensor(own), value), key
