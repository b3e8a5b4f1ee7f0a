"""The sources of the CUDA kernels on the CUDA simulator: strange numbers, scaled gradients, any
layout, any order of work, any shape."""

import copy
from dataclasses import replace
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedstep.backends import cuda
from fusedstep.gpu import work
from tests.support.cases import (
    CASES,
    DTYPES,
    assert_same,
    each,
    make_params,
    same_bits,
    set_grads,
    states,
)
from tests.support.cuda_on_cpu import check
from tests.support.cuda_on_ptx import simulated
from tests.support.layouts import LAYOUTS, misaligned, plain
from tests.support.layouts import run as run_with_layout
from tests.support.problems import Problem
from tests.support.rule_cases import ELEMENTWISE, is_factored
from tests.support.sweeps import sweep

pytestmark = pytest.mark.usefixtures("simulator")

F32, BF16, F16, F64 = DTYPES
CASE = {case.name: case for case in CASES}
ADAMW, ADAFACTOR = CASE["adamw"], CASE["hf-adafactor"]
PART_CAPPED, MOMENTUM = CASE["adafactor-part-capped"], CASE["hf-adafactor-momentum"]
TRAINER = CASE["hf-adafactor-trainer"]
FEW = [(), (7,), (33, 17), (258, 40), (3, 5, 7), (2, 2064)]
STRANGE = [float("inf"), float("-inf"), float("nan"), 1e-42, 1e-30, 1e30]


def strange(value):
    def prepare(optimizer, params, step):
        for param in params:
            param.grad.view(-1)[param.numel() // 2] = value

    return prepare


@pytest.mark.parametrize("value", sweep(STRANGE, STRANGE[::3]))
@each(ELEMENTWISE)
def test_strange_numbers_in_elementwise_rules(case, value):
    check(Problem(case, [(), (33, 17), (64, 8)], (F32, BF16), prepare=strange(value)))


def numbers(optimizer, param):
    return {"parameter": param.detach(), **states(optimizer, param)}


@pytest.mark.parametrize("value", STRANGE)
@each([CASE["adafactor"], PART_CAPPED, CASE["hf-adafactor-scaled"], MOMENTUM])
def test_strange_numbers_in_factored_rules_make_the_same_elements_strange(case, value):
    """The same nans and infinities as in the reference. Finite numbers may differ by a few units,
    as two orders of a sum of at most 153 terms do, relative to the largest number, since some are
    differences. There is no exact result to compare with: in float64 nothing overflows."""
    problem = Problem(case, [(7,), (9, 17), (9, 16), (3, 5, 7)], prepare=strange(value))
    (ours, params), (reference, others) = problem.run("simcuda"), problem.run("reference")
    for p, q in zip(params, others, strict=True):
        found, wanted = numbers(ours, p), numbers(reference, q)
        for name, right in wanted.items():
            largest = right.nan_to_num(0.0, 0.0, 0.0).abs().max().item()
            few = 4 * torch.finfo(F32).eps * (name != "step")
            torch.testing.assert_close(
                found[name], right, rtol=few, atol=few * largest, equal_nan=True
            )


@each([CASE["adamw-decay-maximize"], CASE["adafactor-decay-maximize"], CASE["adamw-amsgrad"]])
def test_gradients_are_scaled(case):
    def scale(optimizer, params, step):
        for param in params:
            param.grad.mul_(2.0**12)
        optimizer.grad_scale = torch.tensor(2.0**12)
        optimizer.found_inf = torch.tensor(0.0)

    check(Problem(case, [(7,), (33, 17), (3, 5, 7)], prepare=scale))


@each([*ELEMENTWISE, CASE["adafactor-capped"], MOMENTUM])
def test_a_step_with_an_infinity_found_changes_nothing(case):
    before = []

    def find(optimizer, params, step):
        if step == 1:
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(1.0)
            for p in params:
                before.append({name: x.clone() for name, x in numbers(optimizer, p).items()})

    optimizer, params = Problem(case, [*FEW, (64, 64)], prepare=find).run("simcuda")
    for param, kept in zip(params, before, strict=True):
        for name, value in numbers(optimizer, param).items():
            assert same_bits(value, kept[name]), name


@each([ADAMW, CASE["old-adamw"], CASE["adafactor"], MOMENTUM])
def test_parameters_without_a_gradient_wait(case):
    runs = []
    for backend in ("simcuda", "reference"):
        params = make_params([(7,), (33, 17), (258, 40)])
        optimizer = case.make(params, backend=backend)
        for step in range(4):
            set_grads(params, step)
            params[step % 3].grad = None
            optimizer.step()
        runs.append((optimizer, params))
    if not is_factored(case):
        assert_same(*runs[0], *runs[1])
    (ours, params), (reference, others) = runs
    for own, other in zip(params, others, strict=True):
        assert numbers(ours, own)["step"] == numbers(reference, other)["step"] in (2, 3)
        torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("case", "layout"),
    [
        (case, layout)
        for case in (ADAMW, PART_CAPPED)
        for layout in LAYOUTS
        if case is ADAMW or layout is not misaligned  # its sums have another order
    ],
    ids=lambda own: getattr(own, "__name__", str(own)),
)
def test_any_layout_gives_the_bits_of_the_plain_one(case, layout):
    case = replace(case, only_ours={"backend": "simcuda"})
    expected = run_with_layout(case, BF16, steps=2)
    for of_param, of_grad in ((layout, plain), (plain, layout)):
        assert_same(*run_with_layout(case, BF16, of_param, of_grad, steps=2), *expected)


# The order of work.


@pytest.mark.usefixtures("small_units")
@pytest.mark.parametrize(("seed", "resident"), [(1, 1), (2, 3), (3, 0)])
@each([ADAMW, PART_CAPPED])
def test_the_order_of_blocks_and_threads_changes_no_bit(case, seed, resident, simulator):
    problem = Problem(case, [*FEW, (8200,), (2, 8208)], (F32, BF16), steps=1)
    expected = problem.run("simcuda")
    simulator.seed(seed)
    simulator.resident(resident)
    assert_same(*problem.run("simcuda"), *expected)


@each([ADAMW, PART_CAPPED, MOMENTUM])
def test_the_order_of_parameters_changes_no_bit(case):
    problem = Problem(case, [(1025,), (33, 17), (258, 40), (64, 64), (3, 5, 7)], steps=1)
    optimizer, params = problem.train(problem.start()[::-1], "simcuda")
    assert_same(*problem.run("simcuda"), optimizer, params[::-1])


@each([ADAFACTOR, TRAINER, PART_CAPPED])
def test_work_that_has_nothing_to_do_changes_nothing(case):
    """As when scalars are on the device, so that the host cannot leave such work out."""
    expected = Problem(case, FEW).run("simcuda")
    with mock.patch.object(work, "idle_kinds", return_value=set()):
        assert_same(*Problem(case, FEW).run("simcuda"), *expected)


# Any shape.

SIZES = st.one_of(st.integers(0, 20), st.sampled_from([31, 32, 33, 63, 64, 65, 127, 129, 256, 300]))
ANY_SHAPES = st.lists(st.lists(SIZES, min_size=0, max_size=3).map(tuple), min_size=1, max_size=4)
DTYPE_LISTS = st.lists(st.sampled_from([F32, BF16, F16, F64]), min_size=1, max_size=3).map(tuple)


def small(shapes):
    return sum(torch.Size(shape).numel() for shape in shapes) < 60_000


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(shapes=ANY_SHAPES.filter(small), dtypes=DTYPE_LISTS, offset=st.integers(0, 2))
def test_any_shapes_of_elementwise_rules(shapes, dtypes, offset):
    check(Problem(CASE["adamw-amsgrad"], shapes, dtypes, offset=offset, steps=2))


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    shapes=ANY_SHAPES.filter(small),
    dtype=st.sampled_from(DTYPES),
    case=st.sampled_from([PART_CAPPED, ADAFACTOR, MOMENTUM]),
    offset=st.integers(0, 2),
    seed=st.integers(0, 3),
)
def test_any_shapes_of_factored_rules(shapes, dtype, case, offset, seed):
    simulated()[1].seed(seed)
    check(Problem(case, shapes, (dtype,), offset=offset, steps=2, chain=64 * (dtype == F64)))


def test_a_resumed_run_of_which_most_gradients_are_absent_has_the_bits_of_one_that_goes_on(
    monkeypatch,
):
    """The height of units depends on all parameters, not on those that have a gradient."""
    programs = dict.fromkeys(cuda.UNIT_SIZES.programs, 1)
    sizes = replace(cuda.UNIT_SIZES, programs=programs, least_elements=64)
    monkeypatch.setattr(cuda, "UNIT_SIZES", sizes)
    shapes = [(256, 64)] * 8
    params, others = make_params(shapes), make_params(shapes)
    goes_on, resumed = (ADAFACTOR.make(own, backend="simcuda") for own in (params, others))
    set_grads(params, 0)
    goes_on.step()
    for param, other in zip(params, others, strict=True):
        other.data.copy_(param)
    resumed.load_state_dict(copy.deepcopy(goes_on.state_dict()))
    for own, optimizer in ((params, goes_on), (others, resumed)):
        set_grads(own, 1)
        for param in own[1:]:
            param.grad = None
        optimizer.step()
    assert_same(goes_on, params, resumed, others)
