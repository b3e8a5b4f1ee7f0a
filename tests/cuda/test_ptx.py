"""Whole steps of the CUDA kernels, compiled by nvcc and executed as PTX: the simulator's bits, the
reference's results, no access out of bounds or misaligned, no race."""

import re
from dataclasses import replace
from unittest import mock

import pytest
import torch

from fusedstep.backends import cuda
from fusedstep.gpu import work
from fusedstep.gpu.unit_sizes import Height
from tests.ptxrun import Fault
from tests.support.absent_gradients import without_gradients
from tests.support.cases import CASES, DTYPES, assert_same, each
from tests.support.cuda_on_cpu import GRADIENTS_HAVE_ANY_DTYPE, bfloat16_gradients
from tests.support.cuda_on_ptx import check, on_ptx, on_simulator
from tests.support.plants import (
    assert_stores_nothing,
    at_an_odd_address,
    one_more,
    only_first,
    shorter,
    twice,
)
from tests.support.problems import Problem
from tests.support.rule_cases import ELEMENTWISE_RULES
from tests.support.sweeps import sweep

pytest_plugins = ["tests.ptxrun.needs_nvcc"]
pytestmark = pytest.mark.usefixtures("nvcc")

F32, BF16, F16, F64 = DTYPES
CASE = {case.name: case for case in CASES}
ADAMW, ADAFACTOR = CASE["adamw"], CASE["hf-adafactor"]
PART_CAPPED, MOMENTUM = CASE["adafactor-part-capped"], CASE["hf-adafactor-momentum"]

VECTORS = [(), (1,), (0,), (7,), (16,), (1025,), (8193,)]
# Aligned rows of 16 elements, and others; several units of rows; a batch, and one of tiny matrices;
# rows too long to finish at once; one row, one column.
MATRICES = [(32, 16), (33, 17), (300, 40), (2, 17, 20), (3, 5, 7), (2, 2064), (1, 9), (9, 1)]
SOME = [(7,), (33, 17), (300, 40), (3, 5, 7)]


@pytest.fixture
def small_units(monkeypatch):
    """Small units, as if matrices were larger: 88 rows of 24 columns have several."""
    unit_sizes = replace(cuda.UNIT_SIZES, unit=Height(8, 256), update_elements=2048)
    monkeypatch.setattr(cuda, "UNIT_SIZES", unit_sizes)


@each([ADAMW, ADAFACTOR, PART_CAPPED])
def test_every_kind_of_work_has_the_bits_of_the_simulator(case):
    check(Problem(case, VECTORS + (MATRICES if case is not ADAMW else [(64, 64), (33, 17)])))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each(ELEMENTWISE_RULES)
def test_elementwise_rules_have_the_bits_of_the_reference(case, dtype):
    launches = check(Problem(case, [(7,), (33, 17), (64, 80)], (dtype,)))
    for what in ("fma", "approximate", "fusable"):
        assert not launches.counted[what]


@pytest.mark.parametrize("dtype", [BF16, F16, F64], ids=str)
@each(sweep([ADAFACTOR, MOMENTUM, PART_CAPPED], [MOMENTUM]))
def test_factored_rules_in_other_dtypes(case, dtype):
    launches = check(Problem(case, SOME, (dtype,)))
    assert not launches.counted["approximate"] and not launches.counted["fusable"]


@pytest.mark.skipif(not GRADIENTS_HAVE_ANY_DTYPE, reason="needs torch 2.10")
@each([ADAMW, MOMENTUM])
def test_float32_parameters_with_gradients_in_bfloat16(case):
    check(Problem(case, [(7,), (32, 16), (33, 17)], prepare=bfloat16_gradients))


# Short matrices are cut into chunks; rows of 17 lines stay whole up to 16,384 columns.
WIDE = [(3, 4096), (2, 4104), (2, 8192), (3, 8208), (2, 12300), (18, 2064)]
WIDE += [(17, 8208), (17, 12296)]


@pytest.mark.parametrize("dtype", sweep([F32, BF16, F64], [BF16]), ids=str)
def test_wide_rows(dtype):
    check(Problem(ADAFACTOR, WIDE, (dtype,), steps=1))


@pytest.mark.usefixtures("small_units")
@pytest.mark.parametrize("dtype", sweep([F32, BF16], [BF16]), ids=str)
@each([PART_CAPPED, MOMENTUM])
def test_matrices_of_several_units(case, dtype):
    shapes = [(200, 24), (100, 17), (2, 30, 40), (20, 520), (9, 2064)]
    launches = check(Problem(case, shapes, (dtype,), steps=1))
    assert any(name.startswith("COLUMNS") for name in launches.of_kernel)


def test_parameters_of_other_dtypes_and_groups_with_other_options():
    groups = ({}, {"weight_decay": 0.3}, {"lr": 0.02})
    check(Problem(ADAMW, 12 * [(7,)], (F32, BF16, F16, F64), groups=groups))
    check(Problem(CASE["hf-adafactor-scaled"], 6 * [(33, 17)], (F32, BF16), groups=groups))


@each([ADAMW, ADAFACTOR])
def test_many_tensors_share_a_launch(case):
    check(Problem(case, 200 * [(3,)] if case is ADAMW else 30 * [(3, 5)] + 5 * [(7,)], steps=1))


@pytest.mark.parametrize("dtype", sweep([F32, BF16], [BF16]), ids=str)
@pytest.mark.parametrize("slot", ["param", "grad", "exp_avg", "exp_avg_sq", "exp_avg_sq_row"])
def test_tensors_may_lie_at_any_address(slot, dtype):
    """From the second step on; parameters from the start."""
    for case in (ADAMW, MOMENTUM):
        prepare = at_an_odd_address(slot)
        check(Problem(case, [(16,), (32, 16)], (dtype,), offset=slot == "param", prepare=prepare))


@pytest.mark.usefixtures("small_units")
@pytest.mark.parametrize("seed", sweep(range(3), [1]))
@each([ADAMW, PART_CAPPED])
def test_the_order_of_blocks_changes_no_bit(case, seed):
    problem = Problem(case, [*SOME, (9000,), (2, 8208)], steps=1)
    with on_simulator():
        expected = problem.run("simcuda")
    with on_ptx(schedule=seed):
        assert_same(*problem.run("simcuda"), *expected)


@each([ADAFACTOR, CASE["hf-adafactor-trainer"], PART_CAPPED])
def test_work_that_has_nothing_to_do_changes_nothing(case):
    """As when scalars are on the device, so that the host cannot leave such work out."""
    with on_ptx() as launches:
        expected = Problem(case, SOME).run("simcuda")
    with on_ptx() as more, mock.patch.object(work, "idle_kinds", return_value=set()):
        assert_same(*Problem(case, SOME).run("simcuda"), *expected)
    assert more.of_kernel.keys() >= launches.of_kernel.keys()


@each([ADAMW, PART_CAPPED])
def test_a_step_with_an_infinity_found_stores_nothing(case):
    with on_ptx() as launches:
        optimizer, params = Problem(case, SOME, steps=1).run("simcuda")
        assert_stores_nothing(optimizer, params, launches.counted)


@each([ADAMW, PART_CAPPED])
def test_tensors_without_a_gradient_are_not_touched(case):
    with without_gradients(range(len(SOME))), on_ptx() as launches:
        Problem(case, SOME, steps=1).run("simcuda")
    assert launches.counted["thread_instructions"] and not launches.counted["st.global.bytes"]


def vectors_moved(counted):
    """Bytes that whole warps loaded and stored, with 16 bytes for each thread."""
    return [512 * counted[f"{what}.global.128"] for what in ("ld", "st")]


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_aligned_tensors_move_once_and_16_bytes_at_a_time(dtype):
    size, item = 8192 * 2, dtype.itemsize
    adamw = check(Problem(ADAMW, [(size,)], (dtype,), steps=1)).counted
    assert vectors_moved(adamw) == [4 * size * item, 3 * size * item]
    assert adamw["st.global.bytes"] == 3 * size * item
    momentum = check(Problem(MOMENTUM, [(64, 256)], (dtype,), steps=1)).of_kernel
    found = {name.split()[0]: vectors_moved(counted) for name, counted in momentum.items()}
    assert found["STATISTICS"][0] >= size * item
    assert found["SQUARES"][0] == size * item
    factors = 2 * 512 * 8 * 4  # in two units: of each thread's columns
    assert found["UPDATE"] == [size * (2 * item + 4) + factors, size * (item + 4)]


def test_a_cap_that_is_infinite_in_float32_is_no_cap():
    """1 / 1e-40 is finite in float64. The rule decides in float32, so all backends must."""
    check(Problem(replace(CASE["adafactor"], options={"eps": (1e-40, 1e-3)}), SOME))


# Faults. Each goes into the arguments of a launch, or into a kernel's text.


def at(kind, change):
    def plant(name, arguments):
        if name.split()[0] == kind:
            change(arguments)

    return plant


M, V, UNITS = [(33, 17)], [(7,)], [(300, 24)]
PLANTED = {
    "an element too many": (ADAMW, V, at("adamw", one_more(-1)), "out of bounds: .* param 0"),
    "an element of a vector": (ADAFACTOR, V, at("VECTOR", one_more(-1)), "out of bounds"),
    "a row too many": (ADAFACTOR, M, at("STATISTICS", one_more(-2)), "out of bounds"),
    "a column too many": (ADAFACTOR, M, at("UPDATE", one_more(-1)), "out of bounds"),
    "a matrix too many": (ADAFACTOR, [(3, 5, 7)], at("TINY", one_more(-3)), "out of bounds"),
    "a chunk twice": (ADAMW, [(8193,)], at("adamw", twice("entries")), "race between CTAs"),
    "rows twice": (ADAFACTOR, UNITS, at("STATISTICS", twice("entries")), "race between CTAs"),
    "a sum twice": (ADAFACTOR, UNITS, at("SQUARES", twice("entries")), "race between CTAs"),
    "an update twice": (ADAFACTOR, UNITS, at("UPDATE", twice("entries")), "race between CTAs"),
    "a sum too few": (ADAFACTOR, M, at("STATISTICS", shorter("sums")), "out of bounds: .* sums"),
    "one of the columns' sums": (
        ADAFACTOR, UNITS, at("STATISTICS", only_first("partials")), "out of bounds: .* partials"
    ),
    "an entry too few": (ADAFACTOR, M, at("FINISH", shorter("entries")), "out of bounds"),
    "a cut too few": (ADAFACTOR, [*M, *UNITS], at("UPDATE", shorter("cuts")), "out of bounds"),
}  # fmt: skip


@pytest.mark.usefixtures("small_units")
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(name):
    case, shapes, plant, message = PLANTED[name]
    problem = Problem(case, shapes, steps=1)
    with on_ptx():
        problem.run("simcuda")
    with on_ptx(plant=plant), pytest.raises(Fault, match=message):
        problem.run("simcuda")


def test_an_elementwise_kernel_that_takes_a_tensor_for_aligned_is_found():
    """The kernel checks the last bits of addresses. The edit removes that check."""

    def edit(name, text):
        return re.sub(r"(and\.b64\s+[^;]*), 15;", r"\1, 0;", text)

    with on_ptx(edit=edit), pytest.raises(Fault, match="misaligned: thread 0 touches 16 bytes"):
        Problem(ADAMW, [(64, 64)], offset=1).run("simcuda")


def test_a_matrix_that_is_said_to_be_aligned_and_is_not_is_found():
    lie = mock.patch.object(work, "by_alignment", return_value=[(True, [0])])
    with on_ptx(), lie, pytest.raises(Fault, match="misaligned: thread 0 touches 16 bytes"):
        Problem(ADAFACTOR, [(64, 64)], offset=1).run("simcuda")


SHARING = "ROW_SUMS ROWS STATISTICS COLUMN_SUMS SQUARES SUM_U2 FINISH UPDATE TINY VECTOR"


@pytest.mark.parametrize("kind", sweep(SHARING.split(), ["ROWS", "STATISTICS", "FINISH", "VECTOR"]))
def test_barriers_that_are_left_out_are_found(kind):
    def edit(name, text):
        return text.replace("bar.sync", "// bar.sync") if name.split()[0] == kind else text

    shapes = [(7,), (33, 17), (3, 5, 7), (2, 12300), (300, 40)]
    with on_ptx(edit=edit), pytest.raises(Fault, match=r"race(:| between) thread"):
        Problem(PART_CAPPED, shapes, steps=1).run("simcuda")


@pytest.mark.usefixtures("small_units")
@pytest.mark.parametrize(
    "kind", sweep(["STATISTICS", "COLUMNS", "SQUARES", "FINISH"], ["COLUMNS", "SQUARES"])
)
def test_sums_that_were_not_written_are_seen(kind):
    """Scratch starts as nan in these tests."""

    def change(arguments):
        arguments["controls"] = torch.tensor([1.0, 1.0], dtype=F64)

    with pytest.raises(AssertionError):
        check(Problem(ADAFACTOR, UNITS, steps=1), plant=at(kind, change))


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each([ADAMW, PART_CAPPED, MOMENTUM])
def test_every_dtype_on_every_architecture(case, dtype, arch):
    check(Problem(case, VECTORS + MATRICES, (dtype,)), arch=arch)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_long_tensors(dtype):
    """A thread adds up dozens of squares, one after the other."""
    shapes = [(16385,), (2049, 9), (257, 1030), (513, 3, 3), (9, 9000)]
    check(Problem(ADAFACTOR, shapes, (dtype,), steps=1, chain=64))
