"""Low-precision storage in Triton's kernels, compiled for a GPU and executed as PTX: bits of the
reference, or as near as other sums allow, no access out of bounds or misaligned, no race."""

import pytest

triton = pytest.importorskip("triton", minversion="3.4")

from tests.ptxrun import Fault  # noqa: E402
from tests.support.cases import CASES  # noqa: E402
from tests.support.plants import at_an_odd_address, one_more, shorter  # noqa: E402
from tests.support.problems import on_ptx  # noqa: E402
from tests.support.stored_cases import PAIRS, STORED, assert_same_bits  # noqa: E402
from tests.support.stored_triton import check, in_runs, problem_of  # noqa: E402
from tests.support.sweeps import sweep  # noqa: E402

CASE = {case.name: case for case in CASES}
OPTIONS = {stored.name: stored for stored in STORED}
ADAMW, ADAFACTOR, MOMENTUM = (
    CASE[name] for name in ("adamw", "hf-adafactor", "hf-adafactor-momentum")
)
ALL = [pair for pair in PAIRS if pair[0] in (ADAMW, ADAFACTOR, MOMENTUM)]
USUAL = [(ADAMW, OPTIONS[name]) for name in ("rest8-bf16-states", "noisy", "int8-noisy", "copied")]
USUAL += [(MOMENTUM, OPTIONS["int8-noisy"])]
SHAPES = [(7,), (33, 17), (40, 128)]


@pytest.mark.parametrize(("case", "stored"), sweep(ALL, USUAL), ids=str)
def test_values(case, stored):
    with on_ptx() as counted:
        check(case, stored, SHAPES)
    assert bool(counted["fma"]) == (case is not ADAMW)  # a first read has some on purpose
    assert counted["approximate"] == counted["fusable"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 100])
@pytest.mark.parametrize(("case", "stored"), [*USUAL, (ADAFACTOR, OPTIONS["rest16"])], ids=str)
def test_other_architectures(case, stored, arch):
    with on_ptx(arch):
        check(case, stored, [*SHAPES, (4, 1152), (2, 2176), (3, 5, 7)])


@pytest.mark.parametrize("slot", sweep(["master_rest", "exp_avg", "exp_avg_scale"], ["exp_avg"]))
def test_tensors_may_lie_at_any_address(slot):
    stored = OPTIONS["int8-rest8"]
    with on_ptx():
        check(ADAMW, stored, [(40, 128)], prepare=at_an_odd_address(slot))


@pytest.mark.parametrize("case", sweep([ADAMW, ADAFACTOR], [ADAMW]), ids=str)
def test_numbers_that_lie_apart_in_the_whole_tensor(case):
    with on_ptx(), in_runs(5, 6, 11, 4, 1000):
        check(case, OPTIONS["noisy"], [*SHAPES, (3, 5, 7)], steps=1)


@pytest.mark.parametrize("case", sweep([ADAMW, MOMENTUM], [ADAMW]), ids=str)
def test_the_order_of_programs_changes_no_bit(case):
    problem = problem_of(case, OPTIONS["int8-noisy"], SHAPES, steps=1)
    with on_ptx():
        in_turns = problem.run("triton")
    with on_ptx(schedule=1):
        assert_same_bits(*problem.run("triton"), *in_turns)


# Faults in the arguments of a launch.


@pytest.mark.parametrize(
    ("stored", "shape", "change"),
    [
        ("rest8-bf16-states", (7,), one_more(-1)),
        ("int8-noisy", (40, 128), one_more(-1)),
        ("noisy", (7,), shorter("noise_rows")),
    ],
)
def test_a_planted_fault_is_found(stored, shape, change):
    def plant(kernel, arguments):
        change(arguments)
        return kernel, arguments

    problem = problem_of(ADAMW, OPTIONS[stored], [shape], steps=1)
    with on_ptx(plant=plant), pytest.raises(Fault, match="out of bounds"):
        problem.run("triton")
