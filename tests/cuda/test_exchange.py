"""The CUDA kernels with an exchange of sums between the stages of a step, on the simulator and as
PTX."""

import itertools

import pytest
import torch

from fusedstep.gpu.cut import EXCHANGED_PHASES
from tests.support import absent_gradients
from tests.support.cases import CASES, DTYPES, assert_same, each
from tests.support.cuda_on_cpu import launched
from tests.support.cuda_on_ptx import on_ptx, on_simulator
from tests.support.exchange import (
    ROLES,
    SHARES,
    FakeProcesses,
    check,
    check_parts,
    exchanged,
    share,
)
from tests.support.problems import Problem
from tests.support.rule_cases import FACTORED
from tests.support.sweeps import sweep

pytest_plugins = ["tests.ptxrun.needs_nvcc"]
pytestmark = pytest.mark.usefixtures("simulator")

F32, BF16, F16, F64 = DTYPES
CASE = {case.name: case for case in CASES}
PART_CAPPED, MOMENTUM = CASE["adafactor-part-capped"], CASE["hf-adafactor-momentum"]
TRAINER = CASE["hf-adafactor-trainer"]
# A row, a column, matrices of one unit, batches, rows longer than a tile, vectors.
SHAPES = [(1, 70), (70, 1), (33, 17), (5, 7, 130), (40, 3, 3), (300, 24), (19, 2064), (9, 8208)]
VECTORS = [(7,), (20_000,)]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_role = pytest.mark.parametrize("role", ROLES)


@pytest.mark.parametrize("dtype", sweep(DTYPES, [F32]), ids=str)
@each_role
@each(sweep([CASE["adafactor"], PART_CAPPED, MOMENTUM, TRAINER], [PART_CAPPED, TRAINER]))
def test_stages_with_an_exchange_between_them(case, role, dtype):
    problem = Problem(case, SHAPES + VECTORS, (dtype,), chain=64 * (dtype == F64))
    check(problem, "simcuda", role)


@pytest.mark.slow
@pytest.mark.usefixtures("small_units")
@each_dtype
@each_role
@each(FACTORED)
def test_every_case_with_an_exchange(case, role, dtype):
    problem = Problem(case, SHAPES + VECTORS, (dtype,), 3, chain=64 * (dtype == F64))
    check(problem, "simcuda", role)


# Matrices that leave sums of several units, or of several chunks of rows, in any case. So the order
# of sums is the same.
OF_SEVERAL_UNITS = {
    "rows": [(300, 24), (2, 70, 300), (19, 2064)],
    "cols": [(19, 8208), (2, 17, 8200)],
    "batch": [(300, 24), (2, 70, 300), (3, 33, 17), (19, 3, 3)],
}


@pytest.mark.usefixtures("small_units")
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@each_role
@each(sweep([CASE["hf-adafactor"], MOMENTUM, TRAINER], [MOMENTUM]))
def test_an_exchange_that_changes_nothing_changes_no_bit(case, role, dtype):
    problem = Problem(case, [*OF_SEVERAL_UNITS[role], *VECTORS], (dtype,))
    found = exchanged(problem, FakeProcesses(), role).run("simcuda")
    assert_same(*found, *problem.run("simcuda"))


@pytest.mark.parametrize(
    ("shares", "case"),
    sweep(
        itertools.product(SHARES, [PART_CAPPED, TRAINER]),
        [("uneven", TRAINER), ("nothing", PART_CAPPED)],
    ),
    ids=lambda own: getattr(own, "name", own),
)
@each_role
def test_two_processes_with_parts_of_each_tensor_make_the_steps_of_one(role, shares, case):
    shapes = [(300, 24), (3, 4104), (1, 5), (5, 1), (6, 17, 33), (40, 3, 3), *VECTORS]
    check_parts(case, "simcuda", role, SHARES[shares], shapes)


class Noting(FakeProcesses):
    """Notes which kinds of work were launched before each message."""

    def __init__(self, simulator):
        super().__init__()
        self.simulator = simulator
        self.noted = [set()]

    def add_up(self, numbers):
        self.noted.append(kinds_of(launched(self.simulator)))
        return super().add_up(numbers)

    def stages(self):
        """What was launched between two messages, in order."""
        noted = [*self.noted, kinds_of(launched(self.simulator))]
        return [after - before for before, after in itertools.pairwise(noted)]


def kinds_of(names):
    return {name.split()[0] for name in names}


# The kinds of work of each stage. In one of pieces, two stages come before the only exchange.
LATE = {"COLUMNS_EXCHANGED", "SUM_U2", "TOTAL_U2"}
PACK = {"SQUARES", "PACK_SQUARES"}
LAST = {"FINISH_EXCHANGED", "UPDATE"}
IN_CHUNKS = {"ROW_SUMS", "ROWS", "COLUMN_SUMS"}
STAGES = {
    "rows": [{"STATISTICS", *IN_CHUNKS, "PACK_COLUMNS", *PACK}, LATE, LAST],
    "cols": [
        {"ROW_SUMS", "PACK_ROWS", *PACK},
        {"ROWS_EXCHANGED", "COLUMN_SUMS", "PACK_COLUMNS", *LATE},
        LAST,
    ],
    "batch": [
        {"STATISTICS", *IN_CHUNKS, "TINY", "COLUMNS", *PACK, "SUM_U2", "TOTAL_U2"},
        {*LAST, "TINY_UPDATE"},
    ],
}


@pytest.mark.usefixtures("small_units")
@each_role
def test_stages_launch_their_own_kinds_of_work_once(role, simulator):
    shapes = [(64, 64), (33, 17), (40, 3, 3), (300, 24), (9, 8208)]
    if role == "batch":  # a matrix alone would be split into rows
        shapes = [shape if len(shape) > 2 else (2, *shape) for shape in shapes]
    problem = Problem(CASE["adafactor-decay-maximize"], shapes, steps=1)
    simulator.reset()
    processes = Noting(simulator)
    exchanged(problem, processes, role).run("simcuda")
    assert processes.stages() == STAGES[role]
    for name, count in launched(simulator).items():
        assert count == 1 or name.split()[0] not in EXCHANGED_PHASES


@each_role
def test_a_process_that_has_nothing_launches_no_walk_over_elements(role, simulator):
    """It still makes the moments that others have too."""
    shapes = {"rows": (0, 17), "cols": (17, 0), "batch": (0, 5, 7)}
    whole = {"rows": (9, 17), "cols": (17, 9), "batch": (9, 5, 7)}
    param = torch.nn.Parameter(torch.zeros(shapes[role]))
    param.grad = torch.zeros(shapes[role])
    optimizer = CASE["adafactor"].make([param], backend="simcuda")
    share(optimizer, FakeProcesses(), role, shapes=[torch.Size(whole[role])])
    simulator.reset()
    optimizer.step()
    own = {
        "rows": {"PACK_COLUMNS", "COLUMNS_EXCHANGED"},
        "cols": {"PACK_ROWS", "ROWS_EXCHANGED"},
        "batch": set(),
    }
    everywhere = {"PACK_SQUARES", "TOTAL_U2", "FINISH_EXCHANGED"}
    assert kinds_of(launched(simulator)) == everywhere | own[role]


def test_sums_that_an_exchange_doubles_are_twice_as_large_in_the_moments():
    """In a first step the old moments have weight 0. The whole matrix has as many rows as here."""
    problem = Problem(CASE["hf-adafactor"], [(33, 17), (2, 5, 130)], steps=1)
    optimizer, params = exchanged(problem, FakeProcesses(2)).run("simcuda")
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


@each_role
@each(sweep([PART_CAPPED, MOMENTUM], [MOMENTUM]))
def test_a_tensor_without_a_gradient_is_left_alone(case, role):
    shapes = [(33, 17), (300, 24), (9, 8208), (40, 3, 3), *VECTORS]
    problem = exchanged(Problem(case, 2 * shapes), FakeProcesses(), role)
    absent_gradients.check(problem, "simcuda", range(len(shapes)))


@pytest.mark.usefixtures("nvcc")
@pytest.mark.parametrize("role", sweep(ROLES, ["cols"]))
@each(sweep([PART_CAPPED, TRAINER], [PART_CAPPED]))
def test_the_machine_code_has_the_bits_of_the_simulator(case, role):
    """PTX as nvcc compiled it: no access out of bounds, no race."""
    problem = Problem(case, [(33, 17), (2, 300, 24), (2, 2064), (7,)])
    problem = exchanged(problem, FakeProcesses(), role)
    with on_ptx():
        found = problem.run("simcuda")
    with on_simulator():
        assert_same(*found, *problem.run("simcuda"))
