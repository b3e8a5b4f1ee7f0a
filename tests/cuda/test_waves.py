"""The CUDA kernels in waves, on the simulator: one launch whose blocks take tickets and wait for
each other."""

import pytest
import torch

from fusedstep.backends import cuda
from fusedstep.gpu import waves
from fusedstep.gpu.cut import UNITS
from tests.support import absent_gradients
from tests.support.cases import CASES, DTYPES, assert_same, each, same_bits
from tests.support.cuda_on_cpu import check, launched
from tests.support.problems import Problem
from tests.support.sweeps import sweep

pytestmark = pytest.mark.usefixtures("simulator", "in_waves")

F32, BF16, F16, F64 = DTYPES
CASE = {case.name: case for case in CASES}
PART_CAPPED, MOMENTUM = CASE["adafactor-part-capped"], CASE["hf-adafactor-momentum"]
# Matrices of one unit and of several, a batch, rows of the largest length.
IN_WAVES = [(64, 64), (200, 48), (80, 1024), (2, 70, 64), (96, 48), (1, 8), (17, 4096)]
# Not aligned, too long rows, few rows that are long, tiny matrices, a vector.
IN_PHASES = [(33, 17), (2, 8200), (40, 4104), (3, 5000), (4, 5, 3), (5,)]


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@each(
    sweep(
        [PART_CAPPED, MOMENTUM, CASE["hf-adafactor"], CASE["hf-adafactor-trainer"]],
        [PART_CAPPED, MOMENTUM],
    )
)
def test_waves_are_as_near_to_float64_as_the_reference(case, dtype, simulator):
    check(Problem(case, IN_WAVES + IN_PHASES, (dtype,)))
    assert simulator.memsets() == 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@each([case for case in CASES if "adafactor" in case.name])
def test_every_case_in_waves(case, dtype, seed, simulator):
    simulator.seed(seed)
    simulator.device(5, 2)
    check(Problem(case, IN_WAVES + IN_PHASES, (dtype,), steps=3))


@pytest.mark.parametrize(
    "absent", sweep([{0}, {1, 3, 5}, {6}, set(range(7))], [{1, 3, 5}]), ids=str
)
@each([PART_CAPPED, MOMENTUM])
def test_nobody_waits_for_a_tensor_without_a_gradient(case, absent, simulator):
    """Its entries are counted as if they were done."""
    absent_gradients.check(Problem(case, IN_WAVES), "simcuda", absent)
    assert simulator.memsets() == 4


@pytest.mark.parametrize(
    ("seed", "resident"), sweep([(0, 1), (1, 3), (2, 0), (3, 24), (4, 2)], [(0, 1), (2, 0)])
)
@each([PART_CAPPED, MOMENTUM])
def test_the_order_in_which_blocks_run_changes_no_bit(case, seed, resident, simulator):
    expected = Problem(case, IN_WAVES).run("simcuda")
    simulator.seed(seed)
    simulator.device(6, 4)  # 24 blocks
    simulator.resident(resident)
    assert_same(*Problem(case, IN_WAVES).run("simcuda"), *expected)


def test_one_launch_has_the_work_on_all_matrices_that_suit_it(simulator, monkeypatch):
    def after_a_step(shapes, dtypes=(F32,), **more):
        simulator.reset()
        Problem(MOMENTUM, shapes, dtypes, steps=1, **more).run("simcuda")
        return {name.split()[0]: count for name, count in launched(simulator).items()}

    assert after_a_step(IN_WAVES) == {"waves": 1}
    both = after_a_step(IN_WAVES + IN_PHASES)
    assert both["waves"] == 1 and {"COLUMN_SUMS", "TINY", "VECTOR", "UPDATE"} <= both.keys()
    assert "waves" not in after_a_step(IN_PHASES)
    assert "waves" not in after_a_step(IN_WAVES, offset=1)
    for dtypes in ((F16,), (F64,)):
        assert "waves" not in after_a_step([(64, 64)], dtypes)
    monkeypatch.setenv(cuda.WAVES, "0")
    assert "waves" not in after_a_step(IN_WAVES)


def test_other_moments_than_float32_go_in_phases(simulator):
    def in_bfloat16(optimizer, params, step):
        if step == 1:
            simulator.reset()
            state = optimizer.state[params[0]]
            state.update({key: x.to(BF16) for key, x in state.items() if "exp" in key})

    Problem(MOMENTUM, [(64, 64)], prepare=in_bfloat16).run("simcuda")
    assert not any(name.startswith("waves") for name in launched(simulator))


# Faults: a changed number in all entries of a kind of work.

NEED, ALSO = 3, 6
SOME = Problem(PART_CAPPED, 6 * [(70, 24)], steps=1)


def plant(monkeypatch, kind, field, value):
    real, changed = waves.entries, []

    def entries(*arguments):
        rows = real(*arguments)
        for i, row in enumerate(rows):
            if UNITS[row[0]] == kind and row[field] != value:
                changed.append(i)
                rows[i] = (*row[:field], value, *row[field + 1 :])
        return rows

    monkeypatch.setattr(waves, "entries", entries)
    return changed


DO_NOT_WAIT = {
    "columns for their sums": ("COLUMNS", NEED),
    "the step size for the columns": ("FINISH", NEED),
    "an update for the step size": ("UPDATE", NEED),
}


@pytest.mark.parametrize("fault", DO_NOT_WAIT)
def test_work_that_does_not_wait_is_noticed(fault, simulator, monkeypatch):
    """Some schedule shows it, by other numbers or a divergent barrier. TSan finds it without such
    luck, see test_sanitized.py."""

    def outcome(seed):
        simulator.seed(seed)
        simulator.device(64, 1)
        try:
            _, params = SOME.run("simcuda")
        except RuntimeError as error:
            return "divergent" in str(error)
        return torch.stack([param.detach() for param in params])

    def as_expected(seed):
        found = outcome(seed)
        return found is not True and same_bits(found, expected)

    monkeypatch.setattr(waves, "WAVE_BYTES", 4000)
    expected = outcome(0)
    assert all(as_expected(seed) for seed in range(1, 4))
    changed = plant(monkeypatch, *DO_NOT_WAIT[fault], 0)
    assert not all(as_expected(seed) for seed in range(1, 13))
    assert changed


COUNTS = {
    "a wave is not said to be done": ("FINISH", ALSO, -1),
    "columns wait for one more": ("COLUMNS", NEED, 99),
    "an update waits for one more": ("UPDATE", NEED, 99),
}


@pytest.mark.parametrize("resident", [1, 3, 0])
@pytest.mark.parametrize("fault", COUNTS)
def test_a_count_that_never_comes_is_a_deadlock(fault, resident, simulator, monkeypatch):
    monkeypatch.setattr(waves, "WAVE_BYTES", 4000)
    plant(monkeypatch, *COUNTS[fault])
    simulator.device(24, 1)
    simulator.resident(resident)
    with pytest.raises(RuntimeError, match="simcuda: deadlock"):
        SOME.run("simcuda")
