"""Checks of every Triton kernel, compiled for three NVIDIA GPUs and one AMD GPU: no spills,
registers and instructions within budget, 16-byte accesses, exact arithmetic, no atomic sums."""

from __future__ import annotations

import functools
import itertools

import pytest

triton = pytest.importorskip("triton", minversion="3.4")

import triton.language as tl  # noqa: E402

from fusedstep.gpu import cut  # noqa: E402
from fusedstep.gpu.cut import WITHOUT_TILES  # noqa: E402
from fusedstep.kernels.blocks import UNIT_SIZES  # noqa: E402
from fusedstep.rules import RULES  # noqa: E402
from tests.support.budgets import TRITON as BUDGETS  # noqa: E402
from tests.support.compiled import Launch, workers  # noqa: E402
from tests.support.compiled_checks import (  # noqa: E402
    adds_atomically,
    complaints,
    inexact,
    long_loop,
    measured,
    narrow,
    over_budget,
    spills,
)
from tests.support.triton_gate import (  # noqa: E402
    BF16,
    F16,
    F32,
    F64,
    MIXES,
    RELEASE,
    TARGETS,
    compiled,
    found_on,
    record,
)

# All launches for all four take many minutes. `make test` checks the usual ones for one of them.
each_gate = pytest.mark.parametrize(
    "gate", ["usual", *(pytest.param(target, marks=pytest.mark.slow) for target in TARGETS)],
    indirect=True,
)  # fmt: skip
each_target = pytest.mark.parametrize(
    "target",
    [pytest.param(target, marks=[pytest.mark.slow] * (target != "sm_90")) for target in TARGETS],
)
VERSION = tuple(map(int, triton.__version__.split(".")[:2]))
with_budgets = pytest.mark.skipif(
    not BUDGETS.file.exists(), reason=f"no budgets of {RELEASE}: `make budgets` writes them"
)


@pytest.fixture(scope="module")
def pool():
    with workers() as pool:
        yield pool


@pytest.fixture(scope="module")
def found(pool):
    """A function: target, or "usual" -> the facts of its launches. Each is compiled once."""
    return functools.cache(
        lambda name: found_on(pool, "sm_90", True) if name == "usual" else found_on(pool, name)
    )


@pytest.fixture
def gate(found, request):
    return found(request.param)


@each_gate
def test_nothing_spills(gate):
    assert not complaints(spills, gate)


@with_budgets
@each_gate
def test_registers_stay_in_their_budget(gate):
    assert not complaints(over_budget, gate)


@with_budgets
@each_gate
def test_hot_loops_have_no_more_instructions_and_barriers_than_their_budget(gate):
    assert not complaints(long_loop, gate)


@with_budgets
@pytest.mark.slow
def test_no_budget_is_larger_than_it_has_to_be(found):
    """So that a regression of 10 % shows."""
    assert not BUDGETS.differences(measured(itertools.chain(*map(found, TARGETS))))


# Triton 3.8, which has no budgets, loads some tiles ahead, and then there are twice as many loads.
@with_budgets
@each_gate
def test_tiles_move_16_bytes_at_a_time(gate):
    assert not complaints(narrow, gate)


@each_gate
def test_arithmetic_is_exact(gate):
    if gate[0][1] == "gfx942" and VERSION < (3, 7):
        pytest.skip("Triton before 3.7 spells AMD's roots and quotients out, in fma")
    assert not complaints(inexact, gate)


@each_gate
def test_no_sum_is_atomic(gate):
    assert not complaints(adds_atomically, gate)


@pytest.mark.slow
def test_every_kind_of_work_and_rule_is_compiled(found):
    """The shapes here reach every kind of work that cut.py can make."""
    possible = {4: set(), 8: set()}
    sizes = (1, 3, 16, 33, 257, 300, 513, 1025, 2049, 4097, 8193, 70000)
    for item_bytes, kinds in possible.items():
        for mode in (None, "rows", "cols", "pieces"):
            layout = cut.Layout(UNIT_SIZES, item_bytes, mode)
            layout.add_vector(5)
            for batch, rows, cols in itertools.product((1, 3), sizes, sizes):
                layout.add_matrices(batch, rows, cols)
            kinds.update(kind for work in layout.work for kind in work)
        assert {kind.name for kind in kinds} == {*cut.PHASES, *cut.EXCHANGED_PHASES}
    launches = [launch for launch, *_ in found("sm_90")]
    for dtypes, item_bytes in (("fp32", 4), ("bf16", 4), ("fp64", 8)):
        for aligned in (True, False) if item_bytes == 4 else (True,):
            own = [
                launch
                for launch in launches
                if launch["DTYPES"][0] == dtypes
                and (launch["ALIGNED"] == aligned or launch.kind in WITHOUT_TILES)
            ]
            compiled_kinds = {(launch["KIND"], launch["WIDTH"]) for launch in own}
            for kind in possible[item_bytes]:
                assert any(kind.name == n and kind.width in (w, 0) for n, w in compiled_kinds), kind
            # Some rules have no 16-bit parameters, since those are sums.
            rules = {
                name
                for name, rule in RULES.items()
                if dtypes != "bf16" or any("bfloat16" in own[0] for own in rule.dtypes)
            }
            assert {launch.rule for launch in own} - {None} == rules


@pytest.mark.slow
@each_target
@pytest.mark.parametrize("rule", RULES)
def test_no_mix_of_dtypes_spills_or_rounds_or_narrows(pool, rule, target):
    """All mixes of dtypes of parameter, gradient and states, aligned and not, for the main GPU. The
    usual mixes for the others."""
    mixes = itertools.product((F32, BF16, F16, F64), repeat=3) if target == "sm_90" else MIXES
    launches = record(pool, [rule], list(mixes), [True, False])
    found = compiled(pool, launches, target)
    for check in (spills, narrow, inexact, adds_atomically):
        assert not complaints(check, found)


# Faults, one for each check.


@triton.jit
def planted_fma(x, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a = tl.load(x + i)
    tl.store(x + i, a * a + a)


@triton.jit
def planted_division(x, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(x + i, 1.0 / tl.load(x + i))


@triton.jit
def planted_root(x, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(x + i, tl.sqrt(tl.load(x + i)))


@triton.jit
def planted_sum(x, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.atomic_add(x + i % 2, tl.load(x + i))


@triton.jit
def planted_hoard(x, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a = tl.load(x + i)
    for _ in range(5):
        a = a * tl.sum(a * a)
    tl.store(x + i, a)


@triton.jit
def planted_tile(x, n, ALIGNED: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    p = tl.load(x).to(tl.pointer_type(tl.float32))
    p = tl.multiple_of(p, 16) if ALIGNED else p
    mask = i < tl.load(n) if MASKED else None
    tl.store(p + i, tl.load(p + i, mask) * 2.0, mask)


def planted(pool, name, target, kind=None, fusion=False, **constants):
    """The launch and facts of a fault. `kind` is the kind of work that it stands for."""
    tables = ("x", "n") if name == "planted_tile" else ("x",)
    types = tuple((x, "*i64" if len(tables) > 1 else "*fp32") for x in tables)
    known = {"KIND": kind, "DTYPES": ("fp32",) * 4, "ALIGNED": True}
    known |= {"WIDTH": constants["BLOCK"], "HEIGHT": 1}
    options = (("num_warps", 4), ("enable_fp_fusion", fusion))
    launch = Launch(f"{__name__}:{name}", types, tuple(constants.items()), options)
    ((_, _, facts),) = compiled(pool, [launch], target)
    return Launch("", (), tuple(known.items()), options), target, facts


@each_target
def test_the_check_sees_what_is_not_exact(pool, target):
    def said(name, fusion=False):
        launch, _, facts = planted(pool, name, target, "SUM_U2", fusion, BLOCK=512)
        assert ("fusion is allowed" in inexact(launch, target, facts)) == fusion
        return facts.inexact

    assert not said("planted_fma")
    assert said("planted_fma", fusion=True)
    assert said("planted_root")
    # AMD's plain division is exact.
    assert bool(said("planted_division")) == (target != "gfx942")


@each_target
def test_the_check_sees_an_atomic_sum(pool, target):
    assert complaints(adds_atomically, [planted(pool, "planted_sum", target, "SUM_U2", BLOCK=512)])


@each_target
def test_the_checks_see_a_hoard_of_registers(pool, target):
    for block, check in ((32768, over_budget), (2**17, spills)):
        hoard = planted(pool, "planted_hoard", target, "SQUARES", BLOCK=block)
        assert complaints(check, [hoard])


@each_target
def test_the_check_sees_narrow_accesses(pool, target):
    for is_aligned, is_masked in itertools.product((True, False), repeat=2):
        tile = {"ALIGNED": is_aligned, "MASKED": is_masked, "BLOCK": 1024}
        found = [planted(pool, "planted_tile", target, "DOUBLED", **tile)]
        assert bool(complaints(narrow, found)) == (is_masked or not is_aligned)
