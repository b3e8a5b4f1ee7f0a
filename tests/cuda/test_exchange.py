"""The CUDA kernels with an exchange of sums between the phases of a step, on the simulator and as
PTX."""

import pytest
import torch

from fusedstep.gpu.cut import EXCHANGED_PHASES
from tests.support import absent_gradients
from tests.support.cases import CASES, DTYPES, assert_same, each
from tests.support.cuda_on_cpu import launched
from tests.support.cuda_on_ptx import on_ptx, on_simulator
from tests.support.exchange import FakeAllReduce, check, exchanged
from tests.support.problems import Problem
from tests.support.rule_cases import FACTORED
from tests.support.sweeps import sweep

pytest_plugins = ["tests.ptxrun.needs_nvcc"]
pytestmark = pytest.mark.usefixtures("simulator")

F32, BF16, F16, F64 = DTYPES
CASE = {case.name: case for case in CASES}
PART_CAPPED, MOMENTUM = CASE["adafactor-part-capped"], CASE["hf-adafactor-momentum"]
# A row, a column, matrices of one unit, batches, rows longer than a tile, vectors.
SHAPES = [(1, 70), (70, 1), (33, 17), (5, 7, 130), (40, 3, 3), (300, 24), (19, 2064), (9, 8208)]
VECTORS = [(7,), (20_000,)]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.mark.parametrize("dtype", sweep(DTYPES, [F32]), ids=str)
@each([CASE["adafactor"], PART_CAPPED, MOMENTUM, CASE["hf-adafactor-trainer"]])
def test_stages_with_an_exchange_between_them(case, dtype):
    check(Problem(case, SHAPES + VECTORS, (dtype,), chain=64 * (dtype == F64)), "simcuda")


@pytest.mark.slow
@pytest.mark.usefixtures("small_units")
@each_dtype
@each(FACTORED)
def test_every_case_with_an_exchange(case, dtype):
    check(Problem(case, SHAPES + VECTORS, (dtype,), 3, chain=64 * (dtype == F64)), "simcuda")


@pytest.mark.usefixtures("small_units")
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@each([CASE["hf-adafactor"], MOMENTUM, CASE["hf-adafactor-trainer"]])
def test_an_exchange_that_changes_nothing_changes_no_bit(case, dtype):
    """Matrices of several units leave sums in any case, so the order of sums is the same."""
    problem = Problem(case, [(300, 24), (2, 70, 300), (19, 2064), *VECTORS], (dtype,))
    found = exchanged(problem, FakeAllReduce()).run("simcuda")
    assert_same(*found, *problem.run("simcuda"))


def test_stages_launch_their_own_kinds_of_work_once(simulator):
    problem = Problem(CASE["adafactor-decay-maximize"], [(64, 64), *SHAPES], steps=1)
    simulator.reset()
    seen = []

    def note(sums):
        seen.append({name.split()[0] for name in launched(simulator)})

    exchanged(problem, note).run("simcuda")
    after_read1, after_finish = seen
    counts = launched(simulator)
    assert not {"TINY", "COLUMNS", "FINISH"} & {name.split()[0] for name in counts}
    assert {"ROWS", "STATISTICS", "COLUMN_SUMS", "PACK_COLUMNS", "PACK_SQUARES"} <= after_read1
    assert after_finish - after_read1 == {"COLUMNS_EXCHANGED", "SUM_U2", "TOTAL_U2"}
    last = {name.split()[0] for name in counts} - after_finish
    assert last == {"FINISH_EXCHANGED", "UPDATE"}
    for name, count in counts.items():
        assert count == 1 or name.split()[0] not in EXCHANGED_PHASES


def test_sums_that_an_exchange_doubles_are_twice_as_large_in_the_moments():
    """In a first step the old moments have weight 0."""

    def doubled(sums):
        for own in sums:
            own *= 2.0

    problem = Problem(CASE["hf-adafactor"], [(33, 17), (2, 5, 130)], steps=1)
    optimizer, params = exchanged(problem, doubled).run("simcuda")
    plain, others = problem.run("simcuda")
    for param, other in zip(params, others, strict=True):
        col, twice = (
            own.state[p]["exp_avg_sq_col"] for own, p in ((plain, other), (optimizer, param))
        )
        assert torch.allclose(twice, 2 * col, rtol=1e-6)
        row, same = (
            own.state[p]["exp_avg_sq_row"] for own, p in ((plain, other), (optimizer, param))
        )
        assert torch.equal(row, same)
        assert not torch.equal(param, other)


@each([PART_CAPPED, MOMENTUM])
def test_a_tensor_without_a_gradient_is_left_alone(case):
    shapes = [(33, 17), (300, 24), (9, 8208), *VECTORS]
    problem = exchanged(Problem(case, 2 * shapes), FakeAllReduce())
    absent_gradients.check(problem, "simcuda", range(len(shapes)))


@pytest.mark.usefixtures("nvcc")
@each(sweep([PART_CAPPED, CASE["hf-adafactor-trainer"]], [PART_CAPPED]))
def test_the_machine_code_has_the_bits_of_the_simulator(case):
    """PTX as nvcc compiled it: no access out of bounds, no race."""
    problem = exchanged(Problem(case, [(33, 17), (2, 300, 24), (2, 2064), (7,)]), FakeAllReduce())
    with on_ptx():
        found = problem.run("simcuda")
    with on_simulator():
        assert_same(*found, *problem.run("simcuda"))
