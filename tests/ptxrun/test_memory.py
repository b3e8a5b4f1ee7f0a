"""Tests of memory: spaces, barriers, flags between CTAs, counts of requests."""

from __future__ import annotations

import numpy as np
import pytest

from . import Fault, Kernel, Memory, run
from .handwritten import BUFFER, CELL, TID, kernel_of, launch

# One step of a reduction of 64 numbers in shared memory. Tests leave its barriers out.
SHARED = """
shl.b32 %r4, %r0, 2; mov.u32 %r5, buffer; add.u32 %r6, %r5, %r4;
ld.global.b32 %r7, [%d0]; st.shared.b32 [%r6], %r7;
{first}
xor.b32 %r8, %r0, {partner}; shl.b32 %r8, %r8, 2; add.u32 %r8, %r5, %r8;
ld.shared.b32 %r9, [%r8]; add.u32 %r7, %r7, %r9;
{second}
st.shared.b32 [%r6], %r7;
bar.sync 0;
ld.shared.b32 %r7, [%r6]; st.global.b32 [%d0], %r7;
"""


@pytest.mark.parametrize(
    ("partner", "first", "second", "message"),
    [
        (32, "bar.sync 0;", "bar.sync 0;", None),
        (32, "", "bar.sync 0;", "reads byte .* that thread"),
        (32, "bar.sync 0;", "", "writes byte .* that thread"),
        (1, "bar.warp.sync -1;", "bar.warp.sync -1;", None),
        (1, "", "bar.warp.sync -1;", "reads byte"),
        (1, "bar.warp.sync -1;", "", "writes byte"),
        (32, "bar.warp.sync -1;", "bar.sync 0;", "reads byte"),
    ],
)
def test_shared_memory_needs_barriers(
    partner: int, first: str, second: str, message: str | None
) -> None:
    body = CELL + SHARED.format(partner=partner, first=first, second=second)
    kernel, x = kernel_of(body, "x", BUFFER), np.arange(64, dtype=np.uint32)
    if message:
        with pytest.raises(Fault, match=f"shared-memory race: thread .* {message}"):
            launch(kernel, 1, 64, x=x)
    else:
        launch(kernel, 1, 64, x=x)
        assert x.tolist() == [i + (i ^ partner) for i in range(64)]


def test_threads_may_write_equal_values_to_one_place_at_once_but_not_different_ones() -> None:
    launch(kernel_of("st.shared.b32 [buffer], 7;", before=BUFFER), 1, 64)
    with pytest.raises(Fault, match="different values"):
        launch(kernel_of(TID + "st.shared.b32 [buffer], %r0;", before=BUFFER), 1, 64)


def test_shared_memory_begins_undefined() -> None:
    body = CELL + "ld.shared.b32 %r4, [buffer]; add.u32 %r5, %r4, 1; st.global.b32 [%d0], %r5;"
    with pytest.raises(Fault, match="uses %r5 as a value to store"):
        launch(kernel_of(body, "x", BUFFER), 1, 32, x=np.zeros(32, np.uint32))


def test_dynamic_shared_memory_lies_behind_the_static_one_and_ends() -> None:
    before = BUFFER + "\n.extern .shared .align 16 .b8 more[];"
    body = TID + "shl.b32 %r4, %r0, 2; mov.u32 %r5, more; add.u32 %r6, %r5, %r4;"
    launch(kernel_of(body + "st.shared.b32 [%r6], 1;", before=before), 1, 32, shared=128)
    with pytest.raises(Fault, match="of shared memory, which has 384 bytes"):
        launch(kernel_of(body + "st.shared.b32 [%r6+4], 1;", before=before), 1, 32, shared=128)


# CTA 0 writes a number and sets a flag. CTA 1 waits for the flag and copies the number.
HANDOVER = """
setp.ne.u32 %p1, %r1, 0; setp.eq.u32 %p2, %r0, {waker};
@%p1 bra TAKE;
setp.eq.u32 %p3, %r0, 0; @%p3 st.global.b32 [%x], 42;
{before}
@%p2 {give}
bra DONE;
TAKE:
@!%p2 bra HAVE;
SPIN: {look} setp.eq.u32 %p4, %r5, 0; @%p4 bra SPIN;
{after}
HAVE: {barrier}
setp.eq.u32 %p3, %r0, 0;
@%p3 ld.global.b32 %r6, [%x]; @%p3 st.global.b32 [%x+8], %r6;
DONE:
"""
RELEASE, ACQUIRE = "st.release.gpu.global.b32 [%x+4], 1;", "ld.acquire.gpu.global.b32 %r5, [%x+4];"
RELAXED, LOOK = "st.relaxed.gpu.global.b32 [%x+4], 1;", "ld.relaxed.gpu.global.b32 %r5, [%x+4];"
FENCE, BARRIER = "fence.acq_rel.gpu;", "bar.sync 0;"
RED = "red.release.gpu.global.add.u32 [%x+4], 1;"
POLL = "atom.acquire.gpu.global.add.u32 %r5, [%x+4], 0;"

# (thread that signals and waits, before the signal, signal, load of the flag, after it, barrier of
# CTA 1, whether the protocol is correct)
PROTOCOLS = {
    "release and acquire": (0, "", RELEASE, ACQUIRE, "", "", True),
    "atomics": (0, "", RED, POLL, "", "", True),
    "fences": (0, "membar.gl;", RELAXED, LOOK, FENCE, "", True),
    "volatile": (0, FENCE, RELAXED, "ld.volatile.global.b32 %r5, [%x+4];", FENCE, "", True),
    "barriers on both sides": (5, BARRIER, RELEASE, ACQUIRE, "", BARRIER, True),
    "relaxed store": (0, "", RELAXED, ACQUIRE, "", "", False),
    "relaxed load": (0, "", RELEASE, LOOK, "", "", False),
    "no fence after": (0, FENCE, RELAXED, LOOK, "", "", False),
    "a fence of the CTA only": (0, "membar.cta;", RELAXED, LOOK, FENCE, "", False),
    "release in the scope of a CTA": (
        0, "", "st.release.cta.global.b32 [%x+4], 1;", ACQUIRE, "", "", False
    ),
    "no barrier before the release": (5, "", RELEASE, ACQUIRE, "", BARRIER, False),
    "no barrier after the acquire": (5, BARRIER, RELEASE, ACQUIRE, "", "", False),
}  # fmt: skip


@pytest.mark.parametrize("schedule", [None, 1, 2, 3])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_flag_hands_data_over_only_if_released_and_acquired(
    name: str, schedule: int | None
) -> None:
    waker, before, give, look, after, barrier, sound = PROTOCOLS[name]
    body = HANDOVER.format(
        waker=waker, before=before, give=give, look=look, after=after, barrier=barrier
    )
    kernel, x = kernel_of(CELL + body, "x"), np.zeros(3, np.uint32)
    if sound:
        launch(kernel, 2, 32, schedule, x=x)
        assert x.tolist() == [42, 1, 42]
    else:
        with pytest.raises(Fault, match="race between CTAs"):
            launch(kernel, 2, 32, schedule, x=x)


def test_neighbouring_16_bit_cells_of_two_ctas_are_no_race() -> None:
    body = TID + "mad.wide.u32 %d0, %r1, 2, %x; cvt.u16.u32 %h0, %r1; st.global.b16 [%d0], %h0;"
    x = np.zeros(6, np.uint16)
    launch(kernel_of(body, "x"), 6, 1, x=x)
    assert x.tolist() == [0, 1, 2, 3, 4, 5]


ACCESSES = [
    ("ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%d0];", "ld.global.128", 1, 16),
    ("ld.global.nc.L1::evict_last.b32 %r4, [%d0];", "ld.global.32", 1, 16),
    ("ld.global.v8.b32 {%r4, %r5, %r6, %r7, %r8, %r9, %r10, %r11}, [%d1];", "ld.global.256", 1, 32),
    ("ld.global.b32 %r4, [%x];", "ld.global.32", 1, 1),
    ("createpolicy.fractional.L2::evict_first.b64 %d3, 1.0; "
     "ld.global.L2::cache_hint.b32 %r4, [%d0], %d3;", "ld.global.32", 1, 16),
]  # fmt: skip


@pytest.mark.parametrize(("text", "counter", "requests", "sectors"), ACCESSES)
def test_requests_and_sectors_are_counted(
    text: str, counter: str, requests: int, sectors: int
) -> None:
    body = TID + "mad.wide.u32 %d0, %r0, 16, %x; mad.wide.u32 %d1, %r0, 32, %x;" + text
    x = np.zeros(264, np.uint32)
    x = x[-x.ctypes.data % 32 // 4 :][:256]
    counted = launch(kernel_of(body, "x"), 1, 32, x=x)
    assert (counted[counter], counted["sectors"]) == (requests, sectors)


def test_structs_and_small_types_come_as_parameters() -> None:
    text = """.visible .entry k(.param .align 8 .b8 s[24], .param .u8 byte, .param .f32 number) {
    .reg .b64 %d<4>; .reg .b32 %r<4>; .reg .b16 %h<2>;
    ld.param.u64 %d0, [s+8]; ld.param.v2.b32 {%r0, %r1}, [s+16]; ld.param.s8 %h0, [byte];
    ld.param.f32 %r2, [number]; cvt.s32.s16 %r3, %h0;
    st.global.v4.b32 [%d0], {%r0, %r1, %r2, %r3}; }"""
    out = np.zeros(4, np.int32)
    struct = np.array([0, out.ctypes.data, 7 | 9 << 32], np.uint64)
    memory = Memory()
    memory.add(out, "out")
    run(Kernel(text), 1, 1, [struct, np.int8(-5), np.float32(1.5)], memory)
    assert out.tolist() == [7, 9, 0x3FC00000, -5]


def test_a_generic_address_may_be_one_of_parameters() -> None:
    text = """.visible .entry k(.param .align 8 .b8 s[24]) {
    .reg .b64 %d<6>; .reg .b32 %r<4>; .reg .pred %p<1>;
    ld.param.u64 %d0, [s]; mov.b64 %d1, s; cvta.param.u64 %d2, %d1; add.u64 %d2, %d2, 8;
    mov.u32 %r0, %tid.x; cvt.u64.u32 %d3, %r0; shl.b64 %d3, %d3, 2; add.u64 %d4, %d2, %d3;
    ld.b32 %r1, [%d4]; add.u64 %d5, %d0, %d3; st.b32 [%d5], %r1; STORE }"""
    out = np.zeros(4, np.int32)
    struct = np.array([out.ctypes.data, 7 | 9 << 32, 5 | 6 << 32], np.uint64)
    memory = Memory()
    memory.add(out, "out")
    run(Kernel(text.replace("STORE", "")), 1, 4, [struct], memory)
    assert out.tolist() == [7, 9, 5, 6]
    with pytest.raises(Fault, match="param memory is not modelled"):
        run(Kernel(text.replace("STORE", "st.b32 [%d4], %r1;")), 1, 4, [struct], memory)
    outside = text.replace("add.u64 %d2, %d2, 8;", "add.u64 %d2, %d2, 4096;").replace("STORE", "")
    with pytest.raises(Fault, match="out of bounds of the parameters"):
        run(Kernel(outside), 1, 4, [struct], memory)


def test_local_memory_belongs_to_each_thread() -> None:
    text = (
        CELL
        + """
    .local .align 8 .b8 depot[16];
    mov.u64 %d2, depot; cvta.local.u64 %d3, %d2; and.b32 %r4, %r0, 3; shl.b32 %r4, %r4, 2;
    cvt.u64.u32 %d4, %r4; add.u64 %d5, %d2, %d4; st.local.b32 [%d5], %r0;
    add.u64 %d6, %d3, %d4; ld.b32 %r6, [%d6]; st.global.b32 [%d0], %r6;
    """
    )
    x = np.zeros(64, np.uint32)
    launch(kernel_of(text, "x"), 1, 64, x=x)
    assert x.tolist() == list(range(64))


def test_asynchronous_copies_arrive() -> None:
    body = (
        CELL
        + """
    shl.b32 %r4, %r0, 2; mov.u32 %r5, buffer; add.u32 %r6, %r5, %r4;
    setp.lt.u32 %p1, %r0, 16; selp.b32 %r7, 4, 0, %p1;
    cp.async.ca.shared.global [%r6], [%d0], 4, %r7; cp.async.commit_group;
    cp.async.wait_group 0; bar.sync 0; ld.shared.b32 %r8, [%r6]; st.global.b32 [%d0], %r8;
    """
    )
    x = np.arange(1, 33, dtype=np.uint32)
    launch(kernel_of(body, "x", BUFFER), 1, 32, x=x)
    assert x.tolist() == [*range(1, 17), *[0] * 16]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ld.global.b32 %r4, [%x]; @%p1 st.global.b32 [%x], 1;", "writes what other threads read"),
        ("@%p1 st.global.b32 [%x], 1; ld.global.b32 %r4, [%x];", "reads what thread 0 wrote"),
        ("st.global.b32 [%x], %r0;", "write different values to one place"),
        ("ld.global.b32 %r4, [%x]; bar.sync 0; @%p1 st.global.b32 [%x], 1;", None),
        ("ld.global.b32 %r4, [%x]; bar.warp.sync -1; @%p1 st.global.b32 [%x], 1;", None),
        ("st.global.b32 [%x], 5;", None),
        ("ld.global.b32 %r4, [%d0]; st.global.b32 [%d0], 1; ld.global.b32 %r4, [%d0];", None),
        ("red.global.add.u32 [%x], 1;", None),
    ],
)
def test_threads_of_a_cta_share_global_memory(text: str, message: str | None) -> None:
    kernel, x = kernel_of(CELL + "setp.eq.u32 %p1, %r0, 0;" + text, "x"), np.zeros(32, np.uint32)
    if message:
        with pytest.raises(Fault, match=message):
            launch(kernel, 1, 32, x=x)
    else:
        launch(kernel, 1, 32, x=x)


def test_tensors_are_registered_from_their_first_to_their_last_element() -> None:
    base = np.zeros(64, np.uint32)
    memory = Memory()
    memory.add(base[8:24:4], "every fourth")
    memory.add(base[40:32:-2], "backwards")
    memory.add(base[50:50], "nothing")
    body, start = "ld.global.b32 %r0, [%x];", base.ctypes.data
    for index in (8, 20, 34, 40):
        run(kernel_of(body, "x"), 1, 1, [np.uint64(start + 4 * index)], memory)
    for index, name in ((7, "fourth"), (21, "fourth"), (33, "backwards"), (41, "backwards")):
        with pytest.raises(Fault, match=f"out of bounds: .* of .*{name}"):
            run(kernel_of(body, "x"), 1, 1, [np.uint64(start + 4 * index)], memory)


def test_blocks_and_grids_have_three_axes() -> None:
    body = """
    mov.u32 %r0, %tid.x; mov.u32 %r1, %tid.y; mov.u32 %r2, %ntid.x; mov.u32 %r3, %ctaid.y;
    mov.u32 %r4, %nctaid.x; mov.u32 %r5, %ctaid.x; mov.u32 %r6, %ntid.y; mul.lo.u32 %r6, %r6, %r2;
    mad.lo.u32 %r7, %r1, %r2, %r0; mad.lo.u32 %r8, %r3, %r4, %r5; mad.lo.u32 %r9, %r8, %r6, %r7;
    mad.wide.u32 %d0, %r9, 4, %x; st.global.b32 [%d0], %r9;
    """
    x = np.zeros(4 * 3 * 2 * 5, np.uint32)
    memory = Memory()
    memory.add(x, "x")
    run(kernel_of(body, "x"), (2, 5), (4, 3), [np.uint64(x.ctypes.data)], memory)
    assert x.tolist() == list(range(120))


@pytest.mark.parametrize(
    "schedule", [None, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]
)
def test_a_standstill_is_told_from_a_long_wait(schedule: int | None) -> None:
    """CTA 0 counts to 3000 without a change of memory, and then sets the flag for the others."""
    body = (
        CELL
        + """
    setp.ne.u32 %p1, %r1, 0; @%p1 bra SPIN; mov.u32 %r4, 0;
    COUNT: ld.volatile.global.b32 %r6, [%x]; add.u32 %r4, %r4, 1; setp.lt.u32 %p2, %r4, 3000;
    @%p2 bra COUNT;
    st.release.gpu.global.b32 [%x], 1; bra DONE;
    SPIN: ld.acquire.gpu.global.b32 %r5, [%x]; setp.eq.u32 %p2, %r5, 0; @%p2 bra SPIN;
    DONE:
    """
    )
    launch(kernel_of(body, "x"), 3, 1, schedule, x=np.zeros(3, np.uint32))
    endless = CELL + "SPIN: ld.acquire.gpu.global.b32 %r5, [%x]; bra SPIN;"
    with pytest.raises(Fault, match="deadlock"):
        launch(kernel_of(endless, "x"), 3, 1, schedule, x=np.zeros(3, np.uint32))
