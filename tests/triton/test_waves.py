"""Matrices in waves, executed as PTX: one launch whose programs wait for each other."""

import pytest
import torch

pytest.importorskip("triton", minversion="3.4")

from fusedstep.gpu import cut, tables, waves
from fusedstep.kernels import launch
from fusedstep.kernels.blocks import UNIT_SIZES
from tests.ptxrun import Fault
from tests.support import absent_gradients
from tests.support.cases import CASES, assert_same, each
from tests.support.problems import Problem, on_ptx
from tests.support.sweeps import sweep

CASE = {case.name: case for case in CASES}
ADAFACTOR, PART_CAPPED = CASE["hf-adafactor"], CASE["adafactor-part-capped"]
# Matrices of one unit and of several, a batch. Then two matrices and a vector that go in phases.
SHAPES = [(64, 64), (200, 48), (80, 1024), (2, 70, 64), (96, 48), (33, 17), (40, 16), (5,)]
IN_WAVES = 5
EVERY = [ADAFACTOR, PART_CAPPED, CASE["hf-adafactor-momentum"], CASE["hf-adafactor-trainer"]]


@pytest.fixture(autouse=True)
def _waves(monkeypatch):
    monkeypatch.setenv(launch.WAVES, "1")
    monkeypatch.setattr(waves, "WAVE_BYTES", 40_000)
    monkeypatch.setattr(tables, "processors", lambda device: 3)


def work_list(optimizer):
    """The launch of the waves, and its entries as tuples."""
    (prepared,) = [own for own in optimizer._plan.launchers if own.bucket.kind == "matrix"]
    (own,) = [one for one in prepared.launches if one.counters is not None]
    return own, [tuple(entry) for entry in own.arguments["entries"].tolist()]


@each(sweep(EVERY, [PART_CAPPED]))
def test_waves_have_the_results_of_the_reference(case):
    with on_ptx():
        Problem(case, SHAPES).check()


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2])
def test_the_order_in_which_programs_run_changes_no_bit(steps):
    problem = Problem(PART_CAPPED, SHAPES, steps=steps)
    with on_ptx():
        expected = problem.run("triton")
    for seed in range(3):
        with on_ptx(schedule=seed):
            assert_same(*problem.run("triton"), *expected)


@pytest.mark.slow
@pytest.mark.parametrize("absent", [{0}, {1, 3, 5}, set(range(IN_WAVES))], ids=str)
def test_nobody_waits_for_a_tensor_without_a_gradient(absent):
    """Its items are counted as if they were done."""
    with on_ptx():
        absent_gradients.check(Problem(PART_CAPPED, SHAPES), "triton", absent)


@pytest.mark.parametrize("wave_bytes", sweep([1, 40_000, 1 << 40], [40_000]))
def test_an_item_waits_only_for_earlier_ones_and_each_comes_once(wave_bytes, monkeypatch):
    monkeypatch.setattr(waves, "WAVE_BYTES", wave_bytes)
    with on_ptx():
        optimizer, _ = Problem(PART_CAPPED, SHAPES, steps=1).run("triton")
    own, entries = work_list(optimizer)
    assert len({entry[:3] for entry in entries}) == len(entries)
    assert {entry[1] for entry in entries} == set(range(IN_WAVES))
    counters = own.counters.tolist()[1:]
    done = [0] * len(counters)
    for _, tensor, _, need, gate, gate_need, also, _ in entries:
        assert done[tensor] >= need
        assert done[gate] >= gate_need
        done[tensor] += 1
        if also >= 0:
            done[also] += 1
    assert done == counters  # as the launch left them


def test_waves_have_what_fits_into_them(monkeypatch):
    monkeypatch.setattr(waves, "WAVE_BYTES", 60)
    sizes = [10, 20, 30, 5_000_000, 10]
    assert waves.cut_into_waves(sizes, [0, 1, 2, 3, 4]) == [[0, 1, 2], [3], [4]]
    assert waves.cut_into_waves(sizes, []) == []


def test_two_waves_at_a_time_have_scratch():
    layout = cut.Layout(UNIT_SIZES, 4)
    for _ in range(12):
        layout.add_matrices(1, 128, 1024, UNIT_SIZES.wave_unit[4])
    each_needs = layout.partials_of[0]
    assert each_needs == 2 * 2 * 1024  # two units, two sums a column
    waves.share_partials(layout, [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9, 10]])
    places = [own.partials_at // each_needs for own in layout.cuts]
    assert places == [1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 0]  # the last one goes in phases
    assert layout.partials == (1 + 4 + 3) * each_needs


def changed(name, field, value):
    """Changes a number in all entries of a kind of work."""

    def plant(kernel, arguments):
        if "CFGS" in arguments:
            entries = arguments["entries"] = arguments["entries"].clone()
            kinds = [config.KIND for config in arguments["CFGS"]]
            chosen = torch.tensor([kinds[kind] == name for kind in entries[:, 0].tolist()])
            assert chosen.any()
            entries[chosen, field] = value
        return kernel, arguments

    return plant


NEED, GATE_NEED, ALSO = 3, 5, 6
PLANTED = {
    "columns do not wait for their sums": (changed("COLUMNS", NEED, 0), "race between CTAs"),
    "an update does not wait": (changed("UPDATE", NEED, 0), "race between CTAs"),
    "sums of a wave that is under way": (changed("STATISTICS", GATE_NEED, 0), "race between CTAs"),
    "a wave is never said to be done": (changed("FINISH", ALSO, -1), "deadlock"),
}


@pytest.mark.slow
def test_planted_faults_are_found_and_nothing_else(monkeypatch):
    # There are so many programs that some start in a later wave, with no earlier item.
    monkeypatch.setattr(tables, "processors", lambda device: 40)
    problem = Problem(PART_CAPPED, 6 * [(66, 1024)], steps=1)
    with on_ptx(schedule=1):
        problem.run("triton")
    for plant, message in PLANTED.values():
        with on_ptx(schedule=1, plant=plant), pytest.raises(Fault, match=message):
            problem.run("triton")


def test_the_switch_says_what_it_takes(monkeypatch):
    monkeypatch.setenv(launch.WAVES, "on")
    with on_ptx(), pytest.raises(ValueError, match="FUSEDSTEP_TRITON_WAVES should be 0 or 1"):
        Problem(ADAFACTOR, [(64, 64)]).run("triton")
