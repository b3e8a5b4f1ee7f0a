"""The sources of the CUDA kernels on the simulator: elementwise rules have the reference's bits,
factored ones are as near to float64 as the reference."""

import pytest
import torch

from fusedstep.backends import cuda
from fusedstep.gpu import cut
from tests.support import absent_gradients, rule_cases
from tests.support.accumulating import ACCUMULATE
from tests.support.cases import CASES, DTYPES, NUMBERS, SHAPES, each, same_bits
from tests.support.cuda_on_cpu import check
from tests.support.problems import Problem, placed
from tests.support.rule_cases import FACTORED, is_factored
from tests.support.sweeps import sweep

pytestmark = pytest.mark.usefixtures("simulator")

F32, BF16, F16, F64 = DTYPES
ELEMENTWISE = [ACCUMULATE, *rule_cases.ELEMENTWISE]
CASE = {case.name: case for case in CASES}
PART_CAPPED, MOMENTUM = CASE["adafactor-part-capped"], CASE["hf-adafactor-momentum"]
BESIDE = [CASE["hf-adafactor-scaled"], MOMENTUM]

# Several units, with SMALL_UNITS: a batch, rows of all lengths.
IN_UNITS = [(300, 24), (100, 17), (2, 70, 40), (20, 520), (19, 2064), (10, 5000), (9, 8208)]
# Rows of two widths of tiles, and longer ones, on both sides of each limit.
WIDE = [(3, 4096), (2, 4104), (40, 4100), (2, 8192), (2, 8200), (1, 8193), (17, 9000)]
WIDE += [(17, 12288), (33, 14_336), (17, 16_384), (17, 16_392)]
# In a column of a unit's 512 rows, one thread adds up to half of them one after the other.
CHAIN = 256
FEW = [(7,), (33, 17), (258, 40), (3, 5, 7), (2, 2064)]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def problem(case, shapes, dtype=F32, **more):
    """In float64 the reference's error matters too: it adds ten thousand numbers in a row."""
    return Problem(case, shapes, (dtype,), chain=64 * (dtype == F64), **more)


def test_the_shapes_reach_every_kind_of_work():
    layout = cut.Layout(cuda.UNIT_SIZES, 4)
    for shape in (*SHAPES, *WIDE, (300, 2048)):
        if 0 not in shape and len(shape) > 1:
            *batch, rows, cols = shape
            layout.add_matrices(torch.Size(batch).numel(), rows, cols)
    layout.add_vector(7)
    assert {kind.name for work in layout.work for kind in work} == set(cut.PHASES)


def table():
    """All cases in all dtypes. Cases of one rule differ in numbers only, so only a few run in other
    dtypes than float32, to save time."""
    usual = [ACCUMULATE, PART_CAPPED, MOMENTUM]
    usual += [case for case in rule_cases.ONE_A_RULE if not is_factored(case)]
    for case in [ACCUMULATE, *CASES]:
        for dtype in DTYPES:
            marks = [pytest.mark.slow] * (dtype != F32 and case not in usual)
            yield pytest.param(case, dtype, marks=marks, id=f"{case}-{dtype}")


@pytest.mark.parametrize(("case", "dtype"), list(table()))
def test_every_case(case, dtype):
    check(problem(case, SHAPES, dtype, steps=2 if is_factored(case) else 3))


@pytest.mark.usefixtures("small_units")
@each_dtype
@each([PART_CAPPED, MOMENTUM])
def test_matrices_of_several_units(case, dtype):
    check(problem(case, IN_UNITS, dtype))


@pytest.mark.slow
@pytest.mark.usefixtures("small_units")
@each_dtype
@each(FACTORED)
def test_every_case_on_matrices_of_several_units(case, dtype):
    check(problem(case, IN_UNITS, dtype, steps=3))


@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
@each([CASE["adafactor-decay-maximize"]])
def test_wide_rows(case, dtype):
    check(problem(case, WIDE, dtype))


@pytest.mark.parametrize(
    ("case", "dtype"), [(PART_CAPPED, F32), (MOMENTUM, BF16)], ids=lambda own: str(own)
)
def test_matrices_that_are_large_enough_for_several_units(case, dtype):
    check(Problem(case, [(300, 2048), (600, 1030)], (dtype,), steps=1, chain=CHAIN))


@pytest.mark.slow
@each_dtype
@each([PART_CAPPED, MOMENTUM])
def test_large_matrices(case, dtype):
    check(
        problem(case, [(300, 2048), (600, 1030), (300, 9000), (2, 513, 1100), (3000, 300)], dtype)
    )


@each([*ELEMENTWISE, PART_CAPPED, MOMENTUM])
def test_tensors_that_are_not_aligned(case):
    shapes = [(7,), (1025,), (8193,), (32, 16), (33, 17), (3, 5, 7), (2, 4104)]
    for dtype in (F32, BF16):
        check(problem(case, shapes, dtype, offset=1))


def at_an_odd_address(optimizer, params, step):
    """Before the second step, moves one tensor of each parameter, a different one for each."""
    for index, param in enumerate(params if step == 1 else ()):
        state = optimizer.state[param]
        names = ["grad", *(key for key in state if key not in NUMBERS)]
        name = names[index % len(names)]
        if name == "grad":
            param.grad = placed(param.grad, 1)
        else:
            state[name] = placed(state[name], 1)


@each([CASE["adamw"], CASE["adamw-amsgrad"], MOMENTUM])
def test_any_one_tensor_of_a_parameter_may_lie_anywhere(case):
    check(problem(case, 4 * [(7,), (32, 16), (48, 40)], BF16, prepare=at_an_odd_address))


def give_states_other_dtypes(optimizer, params, step):
    """After the first step. A float64 run keeps its dtypes."""
    several = len({param.dtype for param in params}) > 1
    for index, param in enumerate(params if step == 1 and several else ()):
        for key, value in optimizer.state[param].items():
            if key not in NUMBERS:
                optimizer.state[param][key] = value.to(DTYPES[(index + index // 4) % 4])


@each(sweep([*ELEMENTWISE, *BESIDE], [ACCUMULATE, *rule_cases.ONE_A_RULE, *BESIDE]))
def test_parameters_of_every_dtype_in_one_list_and_states_of_others(case):
    """All states of a tensor have one dtype here, as rows and columns of a matrix must."""
    shapes = 16 * [(16, 8)] + (4 * [(7,)] if is_factored(case) else [(33, 17)])
    check(Problem(case, shapes, tuple(DTYPES), prepare=give_states_other_dtypes))


@each([CASE["adamw-amsgrad"], CASE["old-adamw"], PART_CAPPED, CASE["hf-adafactor"]])
def test_groups_with_other_options(case):
    groups = ({}, {"weight_decay": 0.3}, {"lr": 0.02})
    if case.name == "hf-adafactor":
        groups = ({}, {"scale_parameter": False}, {"clip_threshold": 0.1, "eps": (1e-4, 1e-3)})
    check(Problem(case, 2 * FEW, (F32,), groups=groups))


@pytest.mark.parametrize("place", [0, 1, 2, 3])
@each([CASE["adamw"], MOMENTUM])
def test_empty_tensors_anywhere(case, place):
    shapes = [(9, 8), (4,)]
    if place < 3:
        shapes[place:place] = [(0,), (5, 0), (0, 5), (2, 0, 3), (0, 3, 3)]
    check(Problem(case, shapes if place < 3 else [(0,), (5, 0), (0, 3, 3)]))


@pytest.mark.usefixtures("small_units")
@each([*ELEMENTWISE, PART_CAPPED, MOMENTUM, CASE["hf-adafactor-trainer"]])
def test_a_tensor_without_a_gradient_is_left_alone(case):
    """For every kind of work, one tensor has a gradient and one has none (address 0)."""
    shapes = [(7,), (20_000,), (33, 17), (300, 24), (3, 5, 7), (9, 8208), (19, 2064)]
    absent_gradients.check(problem(case, 2 * shapes), "simcuda", range(len(shapes)))


@pytest.mark.slow
def test_more_tensors_than_a_grid_may_have_in_its_other_dimensions():
    count = 66_000
    numbers = torch.randn(2, count, 3, generator=torch.Generator().manual_seed(0))
    whole = torch.nn.Parameter(numbers[0].clone())
    parts = [torch.nn.Parameter(part) for part in numbers[0].unbind()]
    whole.grad = numbers[1]
    for part, grad in zip(parts, numbers[1].unbind(), strict=True):
        part.grad = grad
    CASE["adamw"].make([whole], backend="reference").step()
    CASE["adamw"].make(parts, backend="simcuda").step()
    assert same_bits(numbers[0], whole)
