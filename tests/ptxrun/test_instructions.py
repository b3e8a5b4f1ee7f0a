"""Tests of instructions: every case of the table, warps, atomics, and what is not modelled."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from . import Fault
from .handwritten import (
    BUFFER,
    CELL,
    instruction_kernel,
    kernel_of,
    launch,
    storage,
    wanted_bits,
)
from .table_of_cases import CASES
from .tables import FORMATS, Case, from_bits, samples

COMBINATIONS = 1200
# These only move bits, so a NaN keeps its payload.
KEEPS_NAN = ("neg", "abs", "copysign", "cvt.f32.bf16")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.text)
def test_an_instruction_computes_what_its_oracle_says(case: Case) -> None:
    result, *kinds = case.types.split()
    every = list(itertools.product(*(samples(kind) for kind in kinds)))
    if len(every) > COMBINATIONS:
        every = random.Random(case.text).sample(every, COMBINATIONS)
    pairs = [(inputs, wanted_bits(case, inputs)) for inputs in every]
    pairs = [pair for pair in pairs if pair[1] is not None]
    columns = zip(*(inputs for inputs, _ in pairs), strict=True)
    arrays = [
        np.array(c, np.uint64).astype(storage(kind)) for c, kind in zip(columns, kinds, strict=True)
    ]
    out = np.zeros(len(pairs), storage(result))
    operands = {"abc"[place]: array for place, array in enumerate(arrays)}
    launch(instruction_kernel(case), 1, len(pairs), out=out, **operands)
    for (inputs, want), got in zip(pairs, out.tolist(), strict=True):
        numbers = [from_bits(word, kind) for word, kind in zip(inputs, kinds, strict=True)]
        if got != want and result in FORMATS and case.text.startswith(KEEPS_NAN):
            assert want == FORMATS[result][3] and np.isnan(from_bits(got, result)), numbers
        else:
            assert got == want, f"{case.text} of {numbers}: {got:#x}, want {want:#x}"


@pytest.mark.parametrize("tail", [2.0**-80, -(2.0**-80), 2.0**-149, 0.0])
def test_fma_rounds_once_where_rounding_to_float64_first_would_make_a_tie(tail: float) -> None:
    """(1 + 2^-12)^2 is halfway between two float32 numbers, and the tail decides the rounding."""
    near = 1 + 2.0**-12
    fma = next(case for case in CASES if case.text.startswith("fma.rn.f32 "))
    a, c, out = (np.array([x], np.float32) for x in (near, tail, 0.0))
    launch(instruction_kernel(fma), 1, 1, out=out, a=a, b=a, c=c)
    assert out[0] == (1 + 2.0**-11 + 2.0**-23 if tail > 0 else 1 + 2.0**-11)


def test_division_by_zero_is_a_fault() -> None:
    with pytest.raises(Fault, match="division by zero"):
        launch(kernel_of("mov.u32 %r0, 0; div.u32 %r1, %r0, %r0;"), 1, 32)


UNKNOWN = [
    "frobnicate.b32 %r0, %r1;",
    "add.rz.f32 %r0, 0f3F800000, 0f3F800000;",
    "add.s32 %r0, 0f3F800000, 1;",
    "add.s32 %d0, 1, 1;",
    "add.s32 %r0, %h1, 1;",
    "cvt.f32.f64 %r0, 0d3FF0000000000000;",
    "ld.const.b32 %r0, [0];",
    "mov.u32 %r0, %smid;",
    "bar.sync 0, 32;",
    "wgmma.fence.sync.aligned;",
]


@pytest.mark.parametrize("text", UNKNOWN)
def test_what_is_not_modelled_faults(text: str) -> None:
    with pytest.raises(Fault):
        launch(kernel_of(text), 1, 64)


def test_what_is_not_modelled_may_stand_where_nobody_comes() -> None:
    launch(kernel_of("bra DONE; frobnicate.b32 %r0, %r1;\nDONE:"), 1, 32)


ATOMICS = [
    ("add.u32", 7, 5, None, 12),
    ("add.s32", 7, -9, None, -2),
    ("min.s32", -3, 5, None, -3),
    ("max.u32", 3, 5, None, 5),
    ("exch.b32", 3, 5, None, 5),
    ("cas.b32", 3, 3, 9, 9),
    ("cas.b32", 4, 3, 9, 4),
    ("and.b32", 6, 3, None, 2),
    ("or.b32", 6, 3, None, 7),
    ("xor.b32", 6, 3, None, 5),
    ("inc.u32", 5, 5, None, 0),
    ("inc.u32", 4, 5, None, 5),
    ("dec.u32", 0, 5, None, 5),
]


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize(("name", "old", "operand", "second", "new"), ATOMICS)
def test_an_atomic_returns_the_old_value_and_leaves_the_new_one(
    space: str, name: str, old: int, operand: int, second: int | None, new: int
) -> None:
    place = "%x" if space == "global" else "buffer"
    more = "" if second is None else f", {second}"
    prepare = f"st.shared.b32 [buffer], {old}; bar.sync 0;" if space == "shared" else ""
    body = f"{prepare} atom.{space}.{name} %r0, [{place}], {operand}{more}; bar.sync 0;"
    body += f"ld.{space}.b32 %r1, [{place}]; st.global.v2.b32 [%x+8], {{%r0, %r1}};"
    x = np.array([old, 0, 0, 0], np.int32)
    launch(kernel_of(body, "x", BUFFER), 1, 1, x=x)
    assert x[2:].tolist() == [old, new]


def test_lanes_that_meet_in_one_cell_take_turns() -> None:
    body = CELL + "and.b32 %r4, %r0, 3; mad.wide.u32 %d1, %r4, 4, %y;"
    body += "atom.global.add.u32 %r5, [%d1], 1; st.global.b32 [%d0], %r5;"
    x, y = np.zeros(128, np.uint32), np.zeros(4, np.uint32)
    launch(kernel_of(body, "x y"), 2, 64, x=x, y=y)
    assert y.tolist() == [32] * 4
    assert sorted(x.tolist()) == sorted(list(range(32)) * 4)


@pytest.mark.parametrize(("kind", "size"), [("f32", 4), ("f64", 8)])
def test_atomic_float_addition_flushes_denormals_of_float32_in_global_memory(
    kind: str, size: int
) -> None:
    x = np.array([1e-40, 1.0], f"f{size}")
    one = "0f00000001" if kind == "f32" else "0d0000000000000001"
    launch(kernel_of(f"red.global.add.{kind} [%x], {one};", "x"), 1, 1, x=x)
    assert (x[0] == 0) == (kind == "f32")
    launch(kernel_of(f"red.global.add.{kind} [%x+{size}], 0{one[1]}3F{one[4:]};", "x"), 1, 1, x=x)
    assert x[1] > 1


# Instructions between lanes: from %r0 = thread they compute %r4, which is compared with a list.
LANES = range(32)
WARP = {
    "shfl.sync.bfly.b32 %r4, %r0, 5, 31, -1;": [i ^ 5 for i in LANES],
    "shfl.sync.down.b32 %r4, %r0, 3, 31, -1;": [i + 3 if i < 29 else i for i in LANES],
    "shfl.sync.up.b32 %r4, %r0, 3, 0, -1;": [i - 3 if i > 2 else i for i in LANES],
    "shfl.sync.idx.b32 %r4, %r0, 6, 31, -1;": [6] * 32,
    "shfl.sync.idx.b32 %r4, %r0, 1, 0x1C1F, -1;": [i // 4 * 4 + 1 for i in LANES],
    "shfl.sync.down.b32 %r5|%p2, %r0, 3, 31, -1; selp.b32 %r4, 1, 0, %p2;": [
        int(i < 29) for i in LANES
    ],
    "setp.lt.u32 %p1, %r0, 5; vote.sync.ballot.b32 %r4, %p1, -1;": [31] * 32,
    "setp.lt.u32 %p1, %r0, 5; vote.sync.any.pred %p2, %p1, -1; selp.b32 %r4, 1, 0, %p2;": [1] * 32,
    "setp.lt.u32 %p1, %r0, 5; vote.sync.all.pred %p2, !%p1, -1; selp.b32 %r4, 1, 0, %p2;": [0] * 32,
    "redux.sync.add.u32 %r4, %r0, -1;": [496] * 32,
    "redux.sync.min.s32 %r4, %r0, -1;": [0] * 32,
    "redux.sync.xor.b32 %r4, %r0, -1;": [0] * 32,
    "elect.sync %r5|%p2, -1; selp.b32 %r4, 1, 0, %p2;": [1] + [0] * 31,
    "and.b32 %r5, %r0, 1; match.any.sync.b32 %r4, %r5, -1;": [
        0xAAAAAAAA if i & 1 else 0x55555555 for i in LANES
    ],
    "mov.u32 %r4, %lanemask_lt;": [(1 << i) - 1 for i in LANES],
    "mov.u32 %r4, 1; setp.lt.u32 %p1, %r0, 5; @%p1 activemask.b32 %r4;": [31] * 5 + [1] * 27,
    "setp.lt.u32 %p1, %r0, 5; bar.red.popc.u32 %r4, 0, %p1;": [5] * 32,
}  # fmt: skip


@pytest.mark.parametrize("text", WARP)
def test_lanes_of_a_warp_exchange(text: str) -> None:
    x = np.zeros(32, np.uint32)
    launch(kernel_of(CELL + text + "st.global.b32 [%d0], %r4;", "x"), 1, 32, x=x)
    assert x.tolist() == WARP[text]


@pytest.mark.parametrize("transposed", ["", ".trans"])
def test_matrices_go_to_shared_memory_and_back(transposed: str) -> None:
    """A matrix is stored, then read back by the inverse instruction and by plain loads."""
    body = (
        CELL
        + f"""
    shl.b32 %r4, %r0, 4; mov.u32 %r5, buffer; add.u32 %r6, %r5, %r4;
    and.b32 %r4, %r0, 7; shl.b32 %r4, %r4, 4; add.u32 %r10, %r5, %r4;
    ld.global.b32 %r7, [%d0];
    stmatrix.sync.aligned.m8n8.x1{transposed}.shared.b16 [%r10], {{%r7}};
    bar.warp.sync -1;
    ldmatrix.sync.aligned.m8n8.x1{transposed}.shared.b16 {{%r8}}, [%r10];
    st.global.b32 [%d0], %r8;
    shl.b32 %r9, %r0, 2; add.u32 %r9, %r9, %r5; ld.shared.b32 %r9, [%r9];
    st.global.b32 [%d0+128], %r9;
    """
    )
    x = np.zeros(128, np.uint16)
    x[:64] = np.arange(64)
    launch(kernel_of(body, "x", BUFFER), 1, 32, x=x.view(np.uint32))
    assert x[:64].tolist() == list(range(64))
    fragments = np.arange(64).reshape(8, 8)
    want = fragments.T if transposed else fragments
    assert x[64:].reshape(8, 8).tolist() == want.tolist()


def test_divergent_threads_meet_again() -> None:
    body = (
        CELL
        + """
    mov.u32 %r4, 0; mov.u32 %r5, 0;
    LOOP: setp.ge.u32 %p1, %r5, %r0; @%p1 bra OUT;
    add.u32 %r4, %r4, %r5; add.u32 %r5, %r5, 1; bra LOOP;
    OUT: setp.gt.u32 %p2, %r0, 20; @%p2 exit;
    shfl.sync.bfly.b32 %r6, %r4, 0, 31, 0x1FFFFF;
    st.global.b32 [%d0], %r6;
    """
    )
    x = np.zeros(32, np.uint32)
    launch(kernel_of(body, "x"), 1, 32, x=x)
    assert x.tolist() == [i * (i - 1) // 2 if i <= 20 else 0 for i in range(32)]


SWITCH = """
    and.b32 %r4, %r0, 3;
    TABLE: .branchtargets ZERO, ONE, REST, REST;
    brx.idx %r4, TABLE;
    ZERO: mov.u32 %r5, 10; bra MET;
    ONE: mov.u32 %r5, 20; bra MET;
    REST: add.u32 %r5, %r4, 30;
    MET: st.global.b32 [%d0], %r5;
    """


def test_an_indexed_branch_sends_each_thread_its_own_way() -> None:
    x = np.zeros(32, np.uint32)
    launch(kernel_of(CELL + SWITCH, "x"), 1, 32, x=x)
    assert x.tolist() == [10, 20, 32, 33] * 8


def test_an_indexed_branch_beyond_its_table_is_a_fault() -> None:
    x = np.zeros(32, np.uint32)
    with pytest.raises(Fault, match="branch 4 of 4"):
        launch(kernel_of(CELL + SWITCH.replace(", 3;", ", 7;"), "x"), 1, 32, x=x)


def test_undefined_bits_are_followed_through_packing() -> None:
    """If one half of a word is undefined, only the other half may be used."""
    body = (
        CELL
        + """
    cvt.u16.u32 %h0, %r0; mov.b32 %r4, {%h0, %h5}; and.b32 %r5, %r4, 0xFFFF;
    st.global.b32 [%d0], %r5;
    """
    )
    x = np.zeros(32, np.uint32)
    launch(kernel_of(body, "x"), 1, 32, x=x)
    assert x.tolist() == list(range(32))
    with pytest.raises(Fault, match="undefined value: thread 0 uses %r4"):
        launch(kernel_of(body + "st.global.b32 [%d0], %r4;", "x"), 1, 32, x=x)


def test_approximate_and_fused_instructions_are_counted() -> None:
    one = "0f3F800000"
    body = f"ex2.approx.f32 %r0, {one}; fma.rn.f32 %r1, {one}, {one}, {one}; "
    body += f"mul.rn.f32 %r2, {one}, {one}; mul.f32 %r2, {one}, {one};"
    counted = launch(kernel_of(body), 2, 32)
    assert (counted["approximate"], counted["fma"], counted["fusable"]) == (64, 64, 64)
    assert counted["thread_instructions"] == 5 * 64


LATE = """
setp.ge.u32 %p1, %r0, 16; @%p1 bra LATE;
MEET: shfl.sync.bfly.b32 %r5, %r0, 16, 31, -1; st.global.b32 [%d0], %r5; bra DONE;
LATE: {way};
DONE:
"""


def test_lanes_wait_for_the_rest_of_their_warp() -> None:
    x = np.zeros(32, np.uint32)
    launch(kernel_of(CELL + LATE.format(way="bra MEET"), "x"), 1, 32, x=x)
    assert x.tolist() == [i ^ 16 for i in range(32)]
    for way in ("ret", "bar.sync 0"):
        with pytest.raises(Fault, match="names lanes that are not here"):
            launch(kernel_of(CELL + LATE.format(way=way), "x"), 1, 32, x=x)
