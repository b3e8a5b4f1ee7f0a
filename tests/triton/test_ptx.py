"""Whole steps of Triton's kernels, compiled for a GPU and executed as PTX: the reference's results,
no access out of bounds or misaligned, no race, in any order of CTAs.

Compiling takes a second for each kernel and executing far less, so tests share kernels: one rule,
few dtypes, and one GPU unless the test is about another.
"""

from dataclasses import replace
from unittest import mock

import pytest
import torch

triton = pytest.importorskip("triton", minversion="3.4")

import triton.language as tl  # noqa: E402

from fusedstep.kernels import elementwise, launch  # noqa: E402
from fusedstep.rules import RULES  # noqa: E402
from tests.ptxrun import Fault  # noqa: E402
from tests.support import absent_gradients  # noqa: E402
from tests.support.cases import CASES, DTYPES, assert_same, each  # noqa: E402
from tests.support.norms import check_norms  # noqa: E402
from tests.support.plants import (  # noqa: E402
    assert_stores_nothing,
    at_an_odd_address,
    one_more,
    only_first,
    shorter,
    twice,
)
from tests.support.problems import Problem, on_ptx  # noqa: E402
from tests.support.rule_cases import ELEMENTWISE_RULES, rule_of  # noqa: E402
from tests.support.sweeps import sweep  # noqa: E402

F32, BF16, F16, F64 = DTYPES
CASE = {case.name: case for case in CASES}
ADAMW, ADAFACTOR = CASE["adamw"], CASE["hf-adafactor"]
PART_CAPPED = CASE["adafactor-part-capped"]

VECTORS = [(), (1,), (0,), (7,), (16,), (1025,), (4097,)]
# Aligned rows of 16 elements, and others; two blocks of rows; a batch, and one of tiny matrices;
# rows too long to finish at once; one row, one column.
MATRICES = [(32, 16), (33, 17), (300, 40), (2, 17, 20), (3, 5, 7), (2, 2064), (1, 9), (9, 1)]


@each(sweep([ADAMW, ADAFACTOR, PART_CAPPED], [PART_CAPPED]))
def test_every_kind_of_work_has_the_results_of_the_reference(case):
    with on_ptx():
        Problem(case, VECTORS + (MATRICES if case is not ADAMW else [(64, 64), (33, 17)])).check()


# The executor does not model setp.nan.bf16x2, which a maximum of 16-bit states compiles to.
OF_DTYPE = [
    (case, dtype)
    for case in ELEMENTWISE_RULES
    for dtype in DTYPES
    if dtype in (F32, F64) or "maximum" not in RULES[rule_of(case)].update.__code__.co_names
]


@pytest.mark.parametrize(("case", "dtype"), OF_DTYPE, ids=str)
def test_elementwise_rules_have_the_bits_of_the_reference(case, dtype):
    with on_ptx() as counted:
        Problem(case, [(7,), (33, 17), (64, 80)], (dtype,)).check()
    assert counted["fma"] == counted["approximate"] == counted["fusable"] == 0


# hf's states of bfloat16 parameters are float32.
@pytest.mark.parametrize("dtype", sweep([BF16, F64], [BF16]), ids=str)
def test_factored_rules_in_other_dtypes(dtype):
    with on_ptx() as counted:
        Problem(ADAFACTOR, [(7,), (33, 17)], (dtype,)).check()
    assert counted["fma"] > 0  # the first read has some on purpose
    assert counted["approximate"] == counted["fusable"] == 0


def test_a_momentum():
    with on_ptx():
        Problem(CASE["hf-adafactor-momentum"], [(7,), (33, 17)]).check()


@pytest.mark.parametrize(
    ("case", "arch"),
    sweep(
        [(case, arch) for case in (ADAMW, ADAFACTOR) for arch in (80, 100)],
        [(ADAMW, 80), (ADAFACTOR, 100)],
    ),
    ids=str,
)
def test_other_architectures(case, arch):
    with on_ptx(arch):
        Problem(case, [(7,), (33, 17)]).check()


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each([ADAMW, PART_CAPPED, CASE["hf-adafactor-momentum"]])
def test_every_dtype_on_every_architecture(case, dtype, arch):
    with on_ptx(arch):
        Problem(case, VECTORS + MATRICES, (dtype,)).check()


LONG = [(16385,), (2049, 9), (257, 1030), (513, 3, 3), (9, 9000), (1, 70000)]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_long_tensors(dtype):
    with on_ptx():
        Problem(ADAFACTOR, LONG, (dtype,), steps=1).check()
        # A tile is one row: 256 rows are added one after the other.
        Problem(ADAFACTOR, [(257, 8200)], (dtype,), steps=1, chain=256).check()


@pytest.mark.parametrize("dtype", sweep(DTYPES, [BF16]), ids=str)
def test_the_norm_of_the_gradients(dtype):
    with on_ptx() as counted:
        for offset in (0, 1):
            check_norms("triton", dtype, [(7,), (4100,), (32800,)], offset=offset)
    assert counted["fma"] == counted["approximate"] == counted["fusable"] == 0


@each(sweep([ADAMW, ADAFACTOR], [ADAFACTOR]))
def test_many_tensors_share_a_launch(case):
    with on_ptx():
        Problem(case, 200 * [(3,)] if case is ADAMW else 30 * [(3, 5)] + 10 * [(7,)]).check()


def test_parameters_of_other_dtypes_and_groups_with_other_options():
    groups = ({}, {"weight_decay": 0.3}, {"lr": 0.02})
    with on_ptx():
        Problem(ADAMW, 12 * [(7,)], (F32, BF16, F16, F64), groups=groups).check()
        Problem(CASE["hf-adafactor-scaled"], 6 * [(33, 17)], (F32, BF16), groups=groups).check()


@pytest.mark.parametrize(
    "slot", sweep(["param", "grad", "exp_avg_sq", "exp_avg_sq_row"], ["grad", "exp_avg_sq_row"])
)
def test_tensors_may_lie_at_any_address(slot):
    """From the second step on; parameters from the start."""
    for case in (ADAMW, ADAFACTOR):
        problem = Problem(
            case,
            [(16,), (32, 16)],
            offset=slot == "param",
            prepare=at_an_odd_address(slot),
        )
        with on_ptx():
            problem.check()


@pytest.mark.parametrize("steps", sweep([1, 2], [1]))
@each(sweep([ADAMW, PART_CAPPED], [ADAMW]))
def test_the_order_of_programs_changes_no_bit(case, steps):
    problem = Problem(case, [(7,), (33, 17), (300, 40), (3, 5, 7), (2, 2064)], steps=steps)
    with on_ptx():
        in_turns = problem.run("triton")
    for seed in range(3):
        with on_ptx(schedule=seed):
            assert_same(*problem.run("triton"), *in_turns)


@each(sweep([ADAFACTOR, CASE["hf-adafactor-trainer"], PART_CAPPED], [PART_CAPPED]))
def test_work_that_has_nothing_to_do_changes_nothing(case):
    """As when scalars are on the device, so that the host cannot leave such work out."""
    problem = Problem(case, [(7,), (33, 17), (3, 5, 7)])
    with on_ptx():
        expected = problem.run("triton")
        with mock.patch.object(launch.work, "idle_kinds", return_value=set()):
            assert_same(*problem.run("triton"), *expected)


@each([ADAMW, PART_CAPPED])
def test_a_step_with_an_infinity_found_stores_nothing(case):
    problem = Problem(case, [(7,), (33, 17), (300, 40), (3, 5, 7)], steps=1)
    with on_ptx() as counted:
        optimizer, params = problem.run("triton")
        assert_stores_nothing(optimizer, params, counted)


@each(sweep([ADAMW, PART_CAPPED], [ADAMW]))
def test_a_tensor_without_a_gradient_is_left_alone(case):
    """For every kind of work, one tensor has a gradient and one has none (address 0)."""
    shapes = [(7,), (33, 17), (300, 40), (3, 5, 7), (2, 2064)]
    with on_ptx():
        absent_gradients.check(Problem(case, 2 * shapes), "triton", range(len(shapes)))


# Faults. Each is in the arguments of a launch, or in a decision of the host.


def at(kind, change):
    """Changes the arguments of a kind of work. None means an elementwise rule."""

    def plant(kernel, arguments):
        if getattr(arguments["CFG"], "KIND", None) == kind:
            change(arguments)
        return kernel, arguments

    return plant


M, V, BLOCKS, WIDE = [(33, 17)], [(7,)], [(300, 40)], [(2, 2064)]
PLANTED = {
    "an element too many": (ADAMW, V, at(None, one_more(-1)), "out of bounds: .* param 0"),
    "an element of a vector": (ADAFACTOR, V, at("VECTOR", one_more(-1)), "out of bounds"),
    "a row too many": (ADAFACTOR, M, at("STATISTICS", one_more(-2)), "out of bounds"),
    "a column too many": (ADAFACTOR, M, at("UPDATE", one_more(-1)), "out of bounds"),
    "a matrix too many": (ADAFACTOR, [(3, 5, 7)], at("TINY", one_more(-3)), "out of bounds"),
    "a chunk twice": (ADAMW, [(4097,)], at(None, twice("chunks")), "race between CTAs"),
    "rows twice": (ADAFACTOR, BLOCKS, at("STATISTICS", twice("entries")), "race between CTAs"),
    "a sum twice": (ADAFACTOR, BLOCKS, at("SQUARES", twice("entries")), "race between CTAs"),
    "an update twice": (ADAFACTOR, BLOCKS, at("UPDATE", twice("entries")), "race between CTAs"),
    "a sum too few": (ADAFACTOR, M, at("STATISTICS", shorter("sums")), "out of bounds: .* sums"),
    "one of the columns' sums": (
        ADAFACTOR, BLOCKS, at("STATISTICS", only_first("partials")), "out of bounds: .* partials"
    ),
    "one of the rows' sums": (
        ADAFACTOR, WIDE, at("ROW_SUMS", only_first("partials")), "out of bounds: .* partials"
    ),
    "an entry too few": (ADAFACTOR, M, at("FINISH", shorter("entries")), "out of bounds"),
}  # fmt: skip


@pytest.mark.parametrize("name", sweep(PLANTED, list(PLANTED)[::3]))
def test_a_planted_fault_is_found(name):
    case, shapes, plant, message = PLANTED[name]
    problem = Problem(case, shapes, steps=1)
    with on_ptx():
        problem.run("triton")
    with on_ptx(plant=plant), pytest.raises(Fault, match=message):
        problem.run("triton")


@each([ADAMW, ADAFACTOR])
def test_a_tensor_that_is_said_to_be_aligned_and_is_not_is_found(case):
    problem = Problem(case, [(64, 64)], offset=1)
    lie = mock.patch.object(launch.work, "by_alignment", return_value=[(True, [0])])
    with on_ptx(), lie, pytest.raises(Fault, match="misaligned: thread 0 touches 16 bytes"):
        problem.run("triton")


@triton.jit
def without_tail(
    chunks,
    table,
    scalar_row_of,
    scalars,
    controls,
    noise_rows,
    UPDATE: tl.constexpr,
    CFG: tl.constexpr,
):
    """The elementwise walker with a fault: it takes the last chunk for a full one."""
    SLOTS: tl.constexpr = len(CFG.DTYPES)
    SCALARS: tl.constexpr = CFG.SCALARS
    program = tl.program_id(0)
    cells = table + tl.load(chunks + 2 * program) * (SLOTS + 1)
    row = scalars + tl.load(scalar_row_of + tl.load(chunks + 2 * program)) * (2 + SCALARS)
    values = ()
    for k in tl.static_range(SCALARS):
        values = values + (tl.load(row + 1 + k).to(CFG.T),)  # noqa: RUF005
    slots = ()
    for k in tl.static_range(SLOTS):
        slots = slots + (tl.load(cells + k).to(tl.pointer_type(CFG.DTYPES[k])),)  # noqa: RUF005
    for start in range(0, CFG.CHUNK, CFG.BLOCK):
        first = tl.load(chunks + 2 * program + 1).to(tl.int64) * CFG.CHUNK + start
        elementwise.step(slots, first, None, None, 1.0, values, CFG.BLOCK, UPDATE, CFG)


def test_a_kernel_that_forgets_the_tail_is_found():
    with on_ptx(plant=lambda kernel, arguments: (without_tail, arguments)):
        Problem(ADAMW, [(4096,)]).check()
        with pytest.raises(Fault, match="out of bounds"):
            Problem(ADAMW, [(4095,)]).run("triton")


@pytest.mark.parametrize(
    "kind", sweep(["STATISTICS", "COLUMNS", "SQUARES", "FINISH"], ["STATISTICS", "FINISH"])
)
def test_sums_that_were_not_written_are_seen(kind):
    """Scratch starts as nan in these tests."""

    def plant(kernel, arguments):
        stops = arguments["CFG"].KIND == kind
        return kernel, {**arguments, "controls": torch.tensor([1.0, stops])}

    with on_ptx(plant=plant), pytest.raises(AssertionError, match="floors"):
        Problem(ADAFACTOR, BLOCKS, steps=1).check()


def test_a_cap_that_is_infinite_in_float32_is_no_cap():
    """1 / 1e-40 is finite in float64. The rule decides in float32, so all backends must."""
    case = replace(CASE["adafactor"], options={"eps": (1e-40, 1e-3)})
    with on_ptx():
        Problem(case, [(7,), (33, 17), (300, 40), (3, 5, 7)]).check()
