"""Low-precision storage on the CUDA simulator: elementwise rules have the reference's bits in
parameters, states and companions; factored ones are as near as their sums."""

import pytest

from fusedstep.optim import stored as stored_optimizer
from tests.support import absent_gradients
from tests.support.cases import CASES, DTYPES, each
from tests.support.cuda_on_cpu import is_stored, kernels, launched, library
from tests.support.cuda_on_ptx import on_ptx, on_simulator, simulated
from tests.support.rule_cases import is_factored
from tests.support.stored_cases import (
    PAIRS,
    STORED,
    STORED_CASES,
    STORED_SHAPES,
    Stored,
    assert_same_bits,
    fits,
)
from tests.support.stored_problems import (
    assert_near_as_stored,
    at_an_odd_address,
    problem,
    strange_gradients,
)
from tests.support.sweeps import sweep

pytest_plugins = ["tests.ptxrun.needs_nvcc"]
pytestmark = pytest.mark.usefixtures("simulator")

F32, BF16, F16, F64 = DTYPES
CASE = {case.name: case for case in CASES}
OPTION = {stored.name: stored for stored in STORED}
ADAMW, MOMENTUM = CASE["adamw"], CASE["hf-adafactor-momentum"]
ADAFACTOR = CASE["hf-adafactor"]
SMALL = [(7,), (1025,), (33, 17), (40, 128), (3, 16, 128), (4, 3, 3, 3), (20, 256)]
ALL_ADAMW = [(ADAMW, stored) for stored in STORED]
USUAL = [pair for pair in PAIRS if pair[0] in (ADAMW, MOMENTUM)]
# No state, a first state without a sign, and states that do not start with 0.
USUAL += [(CASE["sgd"], OPTION["rest8-bf16-states"]), (CASE["sgd"], OPTION["noisy"])]
USUAL += [(CASE["rmsprop"], OPTION["int8-noisy"]), (CASE["rprop"], OPTION["int8"])]


def check(own):
    found, reference = own.run("simcuda"), own.run("reference")
    if is_factored(own.case):
        assert_near_as_stored(found, reference, own.steps)
    else:
        assert_same_bits(*found, *reference)


def each_pair(pairs, usual=()):
    return pytest.mark.parametrize(("case", "stored"), sweep(pairs, usual or pairs), ids=str)


@each_pair(PAIRS, USUAL)
def test_every_case(case, stored):
    check(problem(case, stored, SMALL))


@pytest.mark.slow
@pytest.mark.usefixtures("small_units")
@each_pair(PAIRS)
def test_every_case_on_more_shapes_and_in_several_units(case, stored):
    check(problem(case, stored, STORED_SHAPES, steps=3))


FACTORED = [
    (ADAFACTOR, OPTION[name]) for name in ("rest16", "rest8-bf16-states", "noisy", "copied")
]


@pytest.mark.usefixtures("small_units")
@each_pair([*FACTORED, (MOMENTUM, OPTION["int8-noisy"]), (MOMENTUM, OPTION["noisy-states"])])
def test_matrices_of_several_units(case, stored):
    check(problem(case, stored, [(300, 24), (100, 17), (2, 40, 128), (20, 520), (3, 5, 7)]))


@pytest.mark.slow
@each_pair([*FACTORED, (MOMENTUM, OPTION["int8"])])
def test_wide_rows(case, stored):
    check(problem(case, stored, [(3, 4096), (2, 4224), (1, 8192), (17, 9088)]))


@each_pair([*ALL_ADAMW, *FACTORED, (MOMENTUM, OPTION["int8-rest8"])])
def test_any_one_tensor_of_a_parameter_may_lie_anywhere(case, stored):
    shapes = 5 * [(16,), (33, 128)]
    check(problem(case, stored, shapes, prepare=at_an_odd_address))
    check(problem(case, stored, shapes[:3], offset=1, steps=1))


@each_pair(ALL_ADAMW)
def test_numbers_of_any_bits(case, stored):
    check(problem(case, stored, [(1029,), (8, 512)], prepare=strange_gradients, steps=3))


# Where the numbers here lie in the whole tensor: the first one, and runs of others. Vectors of 8
# numbers have one run, the ends of several, and whole ones.
PLACES = [
    (3, 17, 50, 33, 9999),
    (2**32 - 5, 128, 512, 20, 2**33),
    (1, 3, 7, 2, 100),
    (0, 1, 3, 1, 5),
]


@pytest.mark.parametrize("places", PLACES, ids=str)
@each_pair([(ADAMW, OPTION[n]) for n in ("noisy", "noisy-states", "int8-noisy")] + FACTORED[2:3])
def test_noise_depends_on_the_place_in_the_whole_tensor(case, stored, places, monkeypatch):
    own = problem(case, stored, [(1025,), (33, 17), (40, 128)])
    apart = [p.detach().clone() for p in own.run("simcuda")[1]]
    monkeypatch.setattr(stored_optimizer, "places_of", lambda param: places)
    check(own)
    there = own.run("simcuda")
    if stored.dtype == BF16:
        assert not any(p.equal(q) for p, q in zip(there[1], apart, strict=True))


@each([ADAMW, ADAFACTOR])
def test_the_seed_and_the_step_change_the_noise_of_scalars_in_memory_too(case, monkeypatch):
    found = []
    for most in (simulated()[0].VALUES, 0):
        monkeypatch.setattr(simulated()[0], "VALUES", most)
        found.append(problem(case, OPTION["noisy"], SMALL).run("simcuda"))
    assert_same_bits(*found[0], *found[1])
    other = Stored("other", {"stochastic_rounding": True, "seed": 4})
    _, params = problem(case, other, SMALL).run("simcuda")
    assert not any(p.equal(q) for p, q in zip(params[1:], found[0][1][1:], strict=True))


@each_pair([*ALL_ADAMW[::4], (ADAMW, OPTION["int8-rest8"]), *FACTORED, (MOMENTUM, OPTION["int8"])])
def test_a_tensor_without_a_gradient_is_left_alone(case, stored):
    shapes = [(7,), (33, 17), (40, 128), (3, 5, 7)]
    absent = range(len(shapes))
    absent_gradients.check(problem(case, stored, 2 * shapes), "simcuda", absent)


@pytest.mark.slow
@pytest.mark.usefixtures("small_units")
def test_every_kernel_that_was_built_is_launched_and_right(simulator):
    shapes = [(7,), (64, 128), (300, 24), (33, 17), (3, 5, 7)]
    for case, stored in PAIRS:
        check(problem(case, stored, shapes))
    for case in (*STORED_CASES, MOMENTUM):  # in float64
        for option in (OPTION["noisy-states"], OPTION["int8"]):
            if case is MOMENTUM or (fits(case, OPTION["int8"]) and not is_factored(case)):
                check(problem(case, Stored("wide", option.options, F64), shapes))
    assert set(filter(is_stored, launched(simulator))) == set(filter(is_stored, kernels(library())))


# The same kernels as nvcc compiled them.


@pytest.mark.usefixtures("nvcc")
@each_pair(
    [(ADAMW, OPTION[n]) for n in ("noisy", "rest8-bf16-states", "int8-rest8", "int8-copied")]
    + [(ADAFACTOR, OPTION[n]) for n in ("noisy", "rest16", "copied")]
    + [(MOMENTUM, OPTION[n]) for n in ("noisy-states", "int8-noisy")],
    [(ADAMW, OPTION["int8-rest8"]), (ADAMW, OPTION["noisy"]), (ADAFACTOR, OPTION["noisy"])],
)
def test_compiled_kernels_have_the_bits_of_the_simulator(case, stored):
    own = problem(case, stored, [(7,), (33, 128), (33, 17)], prepare=strange_gradients)
    with on_ptx() as launches:
        found = own.run("simcuda")
    with on_simulator():
        assert_same_bits(*found, *own.run("simcuda"))
    assert not launches.counted["fma"] or is_factored(case)
    assert not launches.counted["approximate"] and not launches.counted["fusable"]


@pytest.mark.usefixtures("nvcc")
def test_compiled_kernels_find_any_place_in_the_whole_tensor(monkeypatch):
    monkeypatch.setattr(stored_optimizer, "places_of", lambda param: PLACES[0])
    own = problem(ADAMW, OPTION["noisy"], [(33, 17)], steps=1)
    with on_ptx():
        found = own.run("simcuda")
    assert_same_bits(*found, *own.run("reference"))
