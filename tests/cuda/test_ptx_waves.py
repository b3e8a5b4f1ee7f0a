"""The CUDA kernels in waves, as PTX: one launch whose blocks wait for each other."""

from dataclasses import replace

import pytest

from fusedstep.backends import cuda
from fusedstep.gpu import waves
from fusedstep.gpu.cut import UNITS, WAVE_ENTRY, Height
from tests.ptxrun import Fault
from tests.support.cases import CASES, assert_same, each
from tests.support.cuda_on_ptx import check, on_ptx, on_simulator
from tests.support.problems import Problem
from tests.support.sweeps import sweep

pytest_plugins = ["tests.ptxrun.needs_nvcc"]
pytestmark = pytest.mark.usefixtures("nvcc")

CASE = {case.name: case for case in CASES}
PART_CAPPED = CASE["adafactor-part-capped"]
# Matrices of one unit and of several, a batch. Tiny matrices and a vector, which go in phases.
SHAPES = [(64, 64), (200, 48), (40, 520), (2, 35, 64), (33, 17), (4, 5, 3), (5,)]


@pytest.fixture(autouse=True)
def _waves(monkeypatch):
    """Short waves with small units."""
    heights = {item_bytes: Height(16, 64) for item_bytes in (2, 4, 8)}
    monkeypatch.setattr(cuda, "UNIT_SIZES", replace(cuda.UNIT_SIZES, wave_unit=heights))
    monkeypatch.setenv(cuda.WAVES, "1")
    monkeypatch.setattr(waves, "WAVE_BYTES", 20_000)


EVERY = [CASE[f"hf-adafactor{name}"] for name in ("", "-momentum", "-trainer")] + [PART_CAPPED]


@each(sweep(EVERY, [PART_CAPPED]))
def test_waves_have_the_bits_of_the_simulator(case):
    launches = check(Problem(case, SHAPES))
    (own,) = (name for name in launches.of_kernel if name.startswith("waves"))
    assert launches.of_kernel[own]["ld.global.128"]


@pytest.mark.parametrize("seed", sweep(range(3), [0]))
def test_the_order_in_which_blocks_run_changes_no_bit(seed):
    problem = Problem(PART_CAPPED, SHAPES[:4], steps=1)
    with on_simulator():
        expected = problem.run("simcuda")
    with on_ptx(schedule=seed, processors=5):
        assert_same(*problem.run("simcuda"), *expected)


def changed(kind, field, value):
    """Changes a number in all entries of a kind of work."""

    def plant(name, arguments):
        if name.startswith("waves"):
            entries = arguments["entries"] = arguments["entries"].clone()
            rows = entries.view(-1, WAVE_ENTRY)
            chosen = rows[:, 0] == UNITS.index(kind)
            assert chosen.any()
            rows[chosen, field] = value

    return plant


def edited(old, new):
    return lambda name, text: text.replace(old, new) if name.startswith("waves") else text


NEED, GATE_NEED, ALSO = 3, 5, 6
PLANTED = {
    "columns do not wait for their sums": (changed("COLUMNS", NEED, 0), None, "race between CTAs"),
    "an update does not wait": (changed("UPDATE", NEED, 0), None, "race between CTAs"),
    "sums of a wave that is under way": (
        changed("STATISTICS", GATE_NEED, 0), None, "race between CTAs"
    ),
    "a wave is never said to be done": (changed("FINISH", ALSO, -1), None, "deadlock"),
    "a counter is read without acquire": (
        None, edited("ld.acquire.gpu", "ld.relaxed.gpu"), "race between CTAs"
    ),
    "a counter is added to without release": (
        None, edited("red.release.gpu", "red.relaxed.gpu"), "race between CTAs"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [None, *PLANTED])
def test_a_planted_fault_is_found(name, monkeypatch):
    """There are so many blocks that some start in a later wave, with no earlier entry."""
    monkeypatch.setattr(waves, "WAVE_BYTES", 4000)
    plant, edit, message = PLANTED.get(name, (None, None, None))
    problem = Problem(PART_CAPPED, 6 * [(70, 24)], steps=1)
    with on_ptx(schedule=1, plant=plant, edit=edit, processors=24):
        if name is None:
            problem.run("simcuda")
        else:
            with pytest.raises(Fault, match=message):
                problem.run("simcuda")
