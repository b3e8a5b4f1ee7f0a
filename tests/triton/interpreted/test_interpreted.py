"""Triton's kernels, interpreted with numpy: elementwise rules have the reference's bits, factored
ones are as near to float64 as the reference.

A program takes about 1.5 ms, so tensors are as small as possible for each kind of work.
"""

import pytest
import torch

import fusedstep.hf
import fusedstep.optim
from fusedstep.gpu import cut, work
from fusedstep.kernels import blocks, launch
from fusedstep.plan.rows import HostRows
from tests.support import absent_gradients, rule_cases
from tests.support.accumulating import ACCUMULATE
from tests.support.cases import CASES, DTYPES, NUMBERS, assert_same, each, same_bits, states
from tests.support.problems import Problem
from tests.support.rule_cases import FACTORED, is_factored
from tests.support.sweeps import sweep

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy warns about inf and nan

F32, BF16, F16, F64 = DTYPES
ELEMENTWISE = [ACCUMULATE, *rule_cases.ELEMENTWISE]
CASE = {case.name: case for case in CASES}

VECTORS = [(), (1,), (0,), (7,), (16,), (1025,)]
MATRICES = [
    (1, 1),
    (5, 0, 3),
    (1, 9),
    (9, 1),
    (32, 16),  # aligned rows of 16 elements
    (33, 17),
    (258, 40),  # two blocks of rows
    (2, 17, 20),  # a batch
    (3, 5, 7),  # a batch of tiny matrices
    (2, 2064),  # rows too long to finish at once
]
LONG = [
    (cut.VECTOR_UNIT + 1,),
    (2049, 9),  # two blocks of short rows
    (257, 1030),
    (cut.TINY_MATRICES + 1, 3, 3),
    (2, 300, 40),
    (1, 70000),
]
# A tile is one row: 256 rows are added one after the other.
ROW_BY_ROW = [(256, 3000), (257, 8200)]  # the second in several blocks


def test_the_shapes_reach_every_kind_of_work():
    for shapes in (MATRICES, LONG + ROW_BY_ROW):
        layout = cut.Layout(blocks.UNIT_SIZES, 4)
        for shape in shapes:
            if 0 not in shape and len(shape) > 1:
                *batch, rows, cols = shape
                layout.add_matrices(torch.Size(batch).numel(), rows, cols)
        layout.add_vector(7)
        assert {kind.name for work in layout.work for kind in work} == set(cut.PHASES)


USUAL = ("adafactor-part-capped", "hf-adafactor-momentum", "hf-adafactor-trainer")


@each(sweep([ACCUMULATE, *CASES], [*ELEMENTWISE, *(CASE[name] for name in USUAL)]))
def test_float32(case):
    Problem(case, VECTORS + MATRICES).check()


@pytest.mark.parametrize("dtype", [BF16, F16, F64], ids=str)
@each(sweep(ELEMENTWISE, [ACCUMULATE, *rule_cases.ONE_A_RULE]))
def test_elementwise_rules_in_other_dtypes(case, dtype):
    Problem(case, [*VECTORS, (33, 17)], (dtype,)).check()


@pytest.mark.parametrize("dtype", sweep([BF16, F16, F64], [BF16, F64]), ids=str)
@each(sweep([CASE["adafactor"], CASE["hf-adafactor-momentum"]], [CASE["hf-adafactor-momentum"]]))
def test_factored_rules_in_other_dtypes(case, dtype):
    Problem(case, [(7,), (9, 1), (33, 17), (258, 40), (3, 5, 7)], (dtype,)).check()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [BF16, F16, F64], ids=str)
@each(FACTORED)
def test_every_case_in_other_dtypes(case, dtype):
    Problem(case, VECTORS + MATRICES, (dtype,)).check()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@each(FACTORED)
def test_long_tensors(case, dtype):
    Problem(case, LONG, (dtype,)).check()
    Problem(case, ROW_BY_ROW, (dtype,), chain=256).check()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@each(CASES)
def test_ten_steps(case, dtype):
    Problem(case, [(), (7,), (33, 17), (258, 40), (3, 5, 7)], (dtype,), steps=10).check()


def give_states_other_dtypes(optimizer, params, step):
    """After the first step. A float64 run keeps its dtypes."""
    dtypes = sorted({param.dtype for param in params}, key=str)
    for index, param in enumerate(params if step == 1 else ()):
        for key, value in optimizer.state[param].items():
            if key not in NUMBERS and len(dtypes) > 1:
                optimizer.state[param][key] = value.to(DTYPES[(index + index // 4) % 4])


@each([*ELEMENTWISE, CASE["hf-adafactor-scaled"]])
def test_parameters_of_every_dtype_in_one_list(case):
    shapes = [(7,)] * 4 + [(6, 5)] * 8 if is_factored(case) else [(7,)] * 8 + [(33, 17)] * 2
    Problem(case, shapes, (F32, BF16, F16, F64), prepare=give_states_other_dtypes).check()


@each([CASE["adamw-amsgrad"], CASE["old-adamw"], CASE["adafactor-part-capped"]])
def test_tensors_at_any_address_and_groups_with_other_options(case):
    groups = ({}, {"weight_decay": 0.3}, {"lr": 0.02})
    shapes = [(7,), (1025,), (32, 16), (33, 17), (32, 16), (32, 16), (4096,)]
    for offset in (0, 1):
        Problem(case, shapes, groups=groups, offset=offset).check()


def strange(value):
    def prepare(optimizer, params, step):
        for param in params:
            param.grad.view(-1)[param.numel() // 2] = value

    return prepare


STRANGE = [float("inf"), float("-inf"), float("nan"), 1e-42, 1e-30, 1e30]


@pytest.mark.parametrize("value", STRANGE)
@each(sweep(ELEMENTWISE, [ACCUMULATE, *rule_cases.ONE_A_RULE]))
def test_strange_numbers_in_elementwise_rules(case, value):
    Problem(case, [(), (33, 17)], prepare=strange(value)).check()


@pytest.mark.parametrize("value", STRANGE)
@each(
    sweep(
        [CASE["adafactor"], CASE["adafactor-part-capped"], CASE["hf-adafactor-scaled"]],
        [CASE["adafactor-part-capped"]],
    )
)
def test_strange_numbers_in_factored_rules_make_the_same_elements_strange(case, value):
    """The same nans and infinities as in the reference. Finite numbers may differ by a few units,
    as two orders of a sum of at most 153 terms do, relative to the largest number, since some are
    differences. There is no exact result to compare with: in float64 nothing overflows."""
    problem = Problem(case, [(7,), (9, 17), (3, 5, 7)], prepare=strange(value))
    (ours, params), (reference, others) = problem.run("triton"), problem.run("reference")
    for p, q in zip(params, others, strict=True):
        own, right = (
            {"parameter": x.detach(), **states(o, x)} for o, x in ((ours, p), (reference, q))
        )
        for name, number in own.items():
            largest = right[name].nan_to_num(0.0, 0.0, 0.0).abs().max().item()
            few = 4 * torch.finfo(F32).eps * (name != "step")
            torch.testing.assert_close(
                number, right[name], rtol=few, atol=few * largest, equal_nan=True
            )


@each([CASE["adamw-decay-maximize"], CASE["adafactor-decay-maximize"], CASE["adamw-amsgrad"]])
def test_gradients_are_scaled(case):
    def scale(optimizer, params, step):
        for param in params:
            param.grad.mul_(2.0**12)
        optimizer.grad_scale = torch.tensor(2.0**12)
        optimizer.found_inf = torch.tensor(0.0)

    Problem(case, [(7,), (33, 17), (3, 5, 7)], prepare=scale).check()


@each([CASE["adamw"], CASE["old-adamw"], CASE["adafactor-capped"], CASE["hf-adafactor-momentum"]])
def test_a_step_with_an_infinity_found_changes_nothing(case):
    seen = []

    def find(optimizer, params, step):
        if step == 1:
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(1.0)
            seen[:] = [{"parameter": p.detach().clone(), **_copies(optimizer, p)} for p in params]

    shapes = [(), (7,), (33, 17), (258, 40), (3, 5, 7), (2, 2064)]
    optimizer, params = Problem(case, shapes, prepare=find).run("triton")
    for param, before in zip(params, seen, strict=True):
        for name, value in {"parameter": param.detach(), **states(optimizer, param)}.items():
            assert same_bits(value, before[name]), name


def _copies(optimizer, param):
    return {name: value.clone() for name, value in states(optimizer, param).items()}


@each(
    sweep(
        [CASE["adafactor-part-capped"], CASE["hf-adafactor-momentum"]],
        [CASE["adafactor-part-capped"]],
    )
)
def test_the_order_of_parameters_changes_no_bit(case):
    def in_order(backwards):
        problem = Problem(case, [(1025,), (33, 17), (258, 40), (3, 5, 7)], steps=1)
        made = problem.start()[::-1] if backwards else problem.start()
        return problem.train(made, "triton")

    assert_same(*in_order(False), *_reversed(*in_order(True)))


def _reversed(optimizer, params):
    return optimizer, params[::-1]


@each(
    sweep(
        [CASE["adamw"], ACCUMULATE, CASE["adafactor-part-capped"], CASE["hf-adafactor-momentum"]],
        [CASE["adamw"], CASE["hf-adafactor-momentum"]],
    )
)
def test_a_tensor_without_a_gradient_is_left_alone(case):
    shapes = [(7,), (33, 17), (258, 40), (3, 5, 7), (2, 2064)]
    absent_gradients.check(Problem(case, 2 * shapes), "triton", range(len(shapes)))


# Faults. They show that the bounds are narrow enough.


@pytest.mark.parametrize("scalar", ["beta2", "rho", "decay_fixed"])
def test_a_scalar_that_is_off_by_a_part_in_a_hundred_thousand_is_seen(scalar, monkeypatch):
    case = CASE["adafactor-decay-maximize"]
    place = 1 + fusedstep.rules.adafactor.SCALARS.index(scalar)
    real = launch.TritonLauncher.launch

    def wrong(launcher, inputs):
        scalars = inputs.scalars.clone()
        scalars[:, place] *= 1 + 1e-5
        real(launcher, inputs._replace(rows=HostRows(scalars.tolist())))

    Problem(case, [(33, 17)]).check()
    monkeypatch.setattr(launch.TritonLauncher, "launch", wrong)
    with pytest.raises(AssertionError, match="floors"):
        Problem(case, [(33, 17)]).check()


SUMS = [
    "STATISTICS",
    "COLUMNS",
    "SQUARES",
    "SUM_U2",
    "FINISH",
    "VECTOR",
    "TINY",
    "COLUMN_SUMS",
    "ROWS",
]


@pytest.mark.parametrize(
    "kind",
    sweep(
        [*SUMS, "ROW_SUMS", "UPDATE", "VECTOR_UPDATE", "TINY_UPDATE"],
        ["COLUMNS", "SUM_U2", "TINY", "UPDATE"],
    ),
)
def test_a_unit_of_work_that_is_left_out_is_seen(kind, monkeypatch):
    real, left_out = launch.run, []

    def one_less(kernel, programs, arguments, warps):
        less = arguments["CFG"].KIND == kind
        left_out.extend([kind] * less)
        real(kernel, programs - less, arguments, warps)

    def spoiled(self, count, dtype):
        """Memory from an earlier test may hold the very sums that are left out, so it is filled."""
        taken = scratch(self, count, dtype)
        return taken.fill_(float("nan")) if dtype.is_floating_point else taken

    monkeypatch.setattr(launch, "run", one_less)
    scratch = work.DeviceLauncher.scratch
    monkeypatch.setattr(work.DeviceLauncher, "scratch", spoiled)
    shapes = {"VECTOR": [(cut.VECTOR_UNIT + 9,)], "TINY": [(cut.TINY_MATRICES + 1, 2, 2)]}
    wide = [(2, 2064)] if kind in ("COLUMN_SUMS", "ROWS", "ROW_SUMS") else [(300, 40)]
    problem = Problem(CASE["adafactor-part-capped"], shapes.get(kind.split("_")[0], wide))
    with pytest.raises(AssertionError, match="floors"):
        problem.check()
    assert left_out
