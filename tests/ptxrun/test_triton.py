"""Tests of the PTX executor as a whole: planted faults, and Triton kernels, wrong and correct."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from . import Fault, Memory
from .handwritten import CELL, kernel_of, launch

# (body of the kernel, where %d0 = &x[global thread], grid, threads, words of x, the message)
FAULTS = {
    "one element beyond the tail": (
        "ld.global.b32 %r4, [%d0+4];",
        1,
        32,
        32,
        "out of bounds: thread 31 touches 4 bytes at byte 128 of x, which has 128 bytes",
    ),
    "before the first element": ("st.global.b32 [%d0+-4], 1;", 1, 32, 32, "byte -4 of x"),
    "a vector at an address that fits its elements only": (
        "ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%x+4];",
        1,
        1,
        16,
        "misaligned: thread 0 touches 16 bytes at byte 4 of x",
    ),
    "two CTAs write one cell": (
        "st.global.b32 [%x], %r1;",
        2,
        1,
        4,
        r"race between CTAs: CTA \(1, 0, 0\) writes what CTA \(0, 0, 0\) wrote",
    ),
    "one CTA reads what another wrote": (
        "setp.eq.u32 %p1, %r1, 0; @%p1 st.global.b32 [%x], 1; @!%p1 ld.global.b32 %r5, [%x];",
        2,
        1,
        4,
        "reads what CTA",
    ),
    "an atomic meets a plain read": (
        "setp.eq.u32 %p1, %r1, 0; @%p1 red.global.add.u32 [%x], 1; @!%p1 ld.global.b32 %r5, [%x];",
        2,
        1,
        4,
        r"wrote \(atomically\)",
    ),
    "half of the threads reach the barrier": (
        "setp.lt.u32 %p1, %r0, 16; @%p1 bra ON; bar.sync 0;\nON:",
        1,
        32,
        32,
        "barrier divergence: 16 threads have exited",
    ),
    "threads wait at two barriers": (
        "setp.lt.u32 %p1, %r0, 16; @%p1 bra ON; bar.sync 0; bra OFF;\nON: bar.sync 0;\nOFF:",
        1,
        32,
        32,
        "barrier divergence: threads wait at instructions",
    ),
    "a spin that nobody ends": (
        "SPIN: ld.acquire.gpu.global.b32 %r5, [%x]; setp.eq.u32 %p1, %r5, 0; @%p1 bra SPIN;",
        3,
        32,
        128,
        "deadlock: 3 CTAs are under way",
    ),
    "a shuffle from a lane that is elsewhere": (
        "setp.lt.u32 %p1, %r0, 16; @%p1 shfl.sync.bfly.b32 %r5, %r0, 16, 31, 0xFFFF;",
        1,
        32,
        32,
        "reads the lane of a thread that is not here",
    ),
    "a mask that names absent lanes": (
        "setp.lt.u32 %p1, %r0, 16; @%p1 shfl.sync.bfly.b32 %r5, %r0, 1, 31, -1;",
        1,
        32,
        32,
        "names lanes that are not here",
    ),
    "a register that was never written": ("st.global.b32 [%d0], %r20;", 1, 32, 32, "uses %r20"),
    "an undefined address": ("ld.global.b32 %r4, [%d20];", 1, 32, 32, "%d20 as an address"),
    "an undefined predicate": ("@%p5 bra ON;\nON:", 1, 32, 32, "%p5 as a predicate"),
    "a trap": ("trap;", 1, 32, 32, "trap"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str) -> None:
    body, grid, threads, size, message = FAULTS[name]
    with pytest.raises(Fault, match=message):
        launch(kernel_of(CELL + body, "x"), grid, threads, x=np.zeros(size, np.uint32))


torch = pytest.importorskip("torch")
pytest.importorskip("triton", minversion="3.4")
tl = pytest.importorskip("triton.language")
samples = pytest.importorskip(f"{__package__}.triton_samples")
TritonOnCpu = pytest.importorskip(f"{__package__}.triton_launch").TritonOnCpu

ARCHITECTURES = (80, 90, 100)
# `make test` takes one of them where the answer hardly depends on it.
each_architecture = pytest.mark.parametrize(
    "arch", [90, *(pytest.param(arch, marks=pytest.mark.slow) for arch in (80, 100))]
)
DEVICES = {arch: TritonOnCpu(arch) for arch in ARCHITECTURES}
EXACT = {"enable_fp_fusion": False}


def memory_with(**tensors: Any) -> Memory:
    memory = Memory()
    for name, tensor in tensors.items():
        memory.add(tensor, name)
    return memory


@each_architecture
@pytest.mark.parametrize("warps", [4, 8])
@pytest.mark.parametrize(
    ("shape", "tile", "dtype"),
    [
        ((30, 60), (32, 64), "bfloat16"),
        ((5, 500), (8, 512), "float32"),
        ((16, 32), (16, 32), "float16"),
        ((100, 3), (128, 4), "float32"),
    ],
)
def test_sums_along_both_axes(
    arch: int, warps: int, shape: tuple[int, int], tile: tuple[int, int], dtype: str
) -> None:
    x = torch.randint(-8, 9, shape).to(getattr(torch, dtype))
    rows, columns = torch.zeros(shape[0]), torch.zeros(shape[1])
    arguments = dict(x=x, rows=rows, columns=columns, n=shape[0], m=shape[1], R=tile[0], C=tile[1])
    memory = memory_with(x=x, rows=rows, columns=columns)
    DEVICES[arch].launch(samples.sum_both_ways, 1, arguments, warps, memory)
    assert torch.equal(rows, x.float().sum(1))
    assert torch.equal(columns, x.float().sum(0))


STRANGE = [0.0, -0.0, 1.0, -1.5, 1e-45, -1e-40, 1.17549435e-38, 3.4028235e38, -1e38, 0.1, 1 / 3]
STRANGE += [float("inf"), float("-inf"), float("nan"), 2.0**-75, 1e-20, 16777217.0]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_arithmetic_without_fusion_is_exact(arch: int) -> None:
    left, right = np.meshgrid(np.array(STRANGE, np.float32), np.array(STRANGE, np.float32))
    random = np.random.default_rng(1).standard_normal((2, 735)).astype(np.float32)
    a, b = np.concatenate([left.ravel(), random[0]]), np.concatenate([right.ravel(), random[1]])
    out, n = np.zeros((6, len(a)), np.float32), len(a)
    tensors = {"a": torch.from_numpy(a), "b": torch.from_numpy(b), "out": torch.from_numpy(out)}
    counted = DEVICES[arch].launch(
        samples.exact_arithmetic, -(-n // 512), {**tensors, "n": n, "BLOCK": 512}, 4,
        memory_with(**tensors), **EXACT,
    )  # fmt: skip
    with np.errstate(all="ignore"):
        wanted = np.stack([a + b, a - b, a * b, a / b, np.sqrt(a), a * b + a])
    np.testing.assert_array_equal(out, wanted)
    assert (np.signbit(out) == np.signbit(wanted))[~np.isnan(wanted)].all()
    assert counted["approximate"] == counted["fma"] == counted["fusable"] == 0


def test_fusion_and_approximations_are_seen() -> None:
    tensors = {"a": torch.rand(512), "b": torch.rand(512), "out": torch.zeros(6 * 512)}
    counted = DEVICES[90].launch(
        samples.exact_arithmetic, 1, {**tensors, "n": 512, "BLOCK": 512}, 4, memory_with(**tensors)
    )
    assert counted["fma"] >= 512


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tensors_behind_a_table_of_addresses_are_judged_by_their_own_bounds(dtype: str) -> None:
    room = torch.ones(4096, dtype=getattr(torch, dtype))
    tensors = [room[:1000], room[1501:1501], room[2001:2008], room[3000:4023]]
    table = torch.tensor([t.data_ptr() for t in tensors])
    sizes = torch.tensor([t.numel() for t in tensors])
    memory = memory_with(
        table=table, sizes=sizes, **{f"tensor {i}": t for i, t in enumerate(tensors)}
    )
    arguments = {
        "table": table,
        "sizes": sizes,
        "D": getattr(tl, dtype),
        "BLOCK": 512,
        "scale": 3.0,
    }
    DEVICES[90].launch(samples.through_a_table, 4, arguments, 4, memory)
    assert room.float().sum().item() == 4096 + 2 * (1000 + 7 + 1023)
    sizes[2] += 1
    with pytest.raises(Fault, match="of tensor 2, which has"):
        DEVICES[90].launch(samples.through_a_table, 4, arguments, 4, memory)


# (arguments apart from the tensors, grid, the message)
PLANTED = {
    "unmasked": ({"n": 1000, "BLOCK": 512}, 2, r"out of bounds: .* of x, which has 4000 bytes"),
    "alignment": ({"BLOCK": 512}, 1, r"misaligned: thread 0 touches 16 bytes at byte 4 of x"),
    "undefined": ({"n": 500, "BLOCK": 512}, 1, r"undefined value: .* a value to store"),
    "race": ({"BLOCK": 256}, 3, r"race between CTAs: .* in y"),
    "wait": ({}, 3, r"deadlock: 3 CTAs"),
}


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", PLANTED)
def test_a_fault_planted_in_a_triton_kernel_is_found(name: str, arch: int) -> None:
    arguments, grid, message = PLANTED[name]
    x, y, flag = torch.rand(1000), torch.zeros(1024), torch.zeros(1, dtype=torch.int32)
    table = torch.tensor([x.data_ptr() + 4])
    tensors = {"x": x, "y": y, "flag": flag, "table": table}
    kernel = getattr(samples, "planted_" + name)
    taken = {key: tensor for key, tensor in tensors.items() if key in kernel.arg_names}
    with pytest.raises(Fault, match=message):
        DEVICES[arch].launch(kernel, grid, {**taken, **arguments}, 4, memory_with(**tensors))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_threads_of_a_program_need_a_barrier_between_store_and_load(arch: int) -> None:
    x, y = torch.arange(512.0), torch.zeros(512)
    arguments, memory = {"x": x, "y": y, "BLOCK": 512}, memory_with(x=x, y=y)
    with pytest.raises(Fault, match=r"race between threads: thread 0 reads what thread \d+ wrote"):
        DEVICES[arch].launch(
            samples.reversed_through_memory, 1, {**arguments, "BARRIER": False}, 4, memory
        )
    DEVICES[arch].launch(
        samples.reversed_through_memory, 1, {**arguments, "BARRIER": True}, 4, memory
    )
    assert torch.equal(x, torch.arange(512.0).flip(0))


@each_architecture
@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "float32", "bfloat16"])
@pytest.mark.parametrize("other", [None, 0, 7])
def test_masked_lanes_are_undefined_unless_other_is_given(
    other: int | None, dtype: str, called: bool, arch: int
) -> None:
    kind = getattr(torch, dtype)
    x, y = torch.ones(512).to(kind), torch.zeros(512).to(kind)
    memory = memory_with(x=x, y=y)
    arguments = {"x": x, "y": y, "n": 100, "BLOCK": 512, "OTHER": other, "CALLED": called}

    def go() -> None:
        DEVICES[arch].launch(samples.masked_load, 1, arguments, 4, memory)

    if other is None:
        with pytest.raises(Fault, match="undefined value"):
            go()
    else:
        go()
        assert y.tolist() == [1] * 100 + [other] * 412


def test_masked_loads_without_other_may_be_used_where_the_mask_holds() -> None:
    x, out = torch.rand(512), torch.zeros(512)
    arguments = {"x": x, "out": out, "n": 500, "BLOCK": 512}
    DEVICES[90].launch(
        samples.masked_loads_used_well, 1, arguments, 4, memory_with(x=x, out=out), **EXACT
    )
    assert torch.equal(out[:500], x[:500] * 2)
    assert out[500].item() == pytest.approx(x[:500].sum().item())


@pytest.mark.parametrize("schedule", [None, *range(4)])
@pytest.mark.parametrize("warps", [4, 8])
@pytest.mark.parametrize(
    ("barrier", "release", "acquire", "sound"),
    [
        (True, "release", "acquire", True),
        (True, "acq_rel", "acq_rel", True),
        (True, "relaxed", "acquire", False),
        (True, "release", "relaxed", False),
        (False, "release", "acquire", False),
    ],
)
def test_producers_and_a_consumer_that_spins(
    schedule: int | None, warps: int, barrier: bool, release: str, acquire: str, sound: bool
) -> None:
    tensors = {
        "flag": torch.zeros(1, dtype=torch.int32),
        "parts": torch.zeros(5, 512),
        "out": torch.zeros(512),
    }
    arguments = {
        **tensors, "BARRIER": barrier, "RELEASE": release, "ACQUIRE": acquire, "BLOCK": 512
    }  # fmt: skip

    def go() -> None:
        DEVICES[90].launch(
            samples.produce_and_consume, 6, arguments, warps, memory_with(**tensors), schedule
        )

    if sound:
        go()
        assert torch.equal(tensors["out"], torch.arange(512.0) * 5 + 15)
    else:
        with pytest.raises(Fault, match="race between CTAs"):
            go()


def test_arguments_are_specialized_as_triton_does() -> None:
    device, x, out = TritonOnCpu(90), torch.rand(32), torch.zeros(32, dtype=torch.bfloat16)
    arguments = {"x": x, "out": out, "n": 20, "one": 1, "SHIFT": 2,
                 "KINDS": (tl.bfloat16, tl.float16), "FUNCTION": samples.doubled}  # fmt: skip
    device.launch(samples.with_options, 1, arguments, 1, memory_with(x=x, out=out))
    assert torch.equal(out[:20], ((x * 2).half().bfloat16() + 1 + 2)[:20])
    signature, constants, attributes, _ = device.specialize(
        samples.with_options, arguments, {"num_warps": 1}
    )
    assert (signature["one"], signature["n"]) == ("constexpr", "i32")
    assert constants[(3,)] == 1
    assert attributes[(0,)] and not attributes[(2,)]
    y = torch.zeros(128, dtype=torch.int32)
    for n in (1, 2**40):
        signature, _, attributes, _ = device.specialize(samples.unspecialized, {"x": y, "n": n}, {})
        assert signature == {"x": "*i32", "n": "i64" if n > 1 else "i32"}
        assert not any(attributes.values())


def test_a_kernel_is_compiled_once_for_each_specialization() -> None:
    device, y = TritonOnCpu(90), torch.zeros(128, dtype=torch.int32)
    for n in (1, 2, 3, 16):
        device.launch(samples.unspecialized, 1, {"x": y, "n": n}, 4, memory_with(y=y))
    assert y.tolist() == [22] * 128
    assert len(device._compiled) == 1
