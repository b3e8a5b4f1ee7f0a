"""Kernels compiled by nvcc: correct ones give the right values, and planted faults are found."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from . import Fault, Kernel
from .mangled import Name, parse
from .module import Module
from .nvcc_launch import launch

pytest_plugins = [f"{__package__}.needs_nvcc"]
compiled = pytest.mark.usefixtures("nvcc")

RANDOM = np.random.default_rng(5)
STRANGE = [0.0, -0.0, 1.0, -1.5, 1e-45, -1e-40, 3.4028235e38, -1e38, 0.1, 16777217.0, 1e-20]
STRANGE += [float("inf"), float("-inf"), float("nan"), 2.0**-75, 6e4, 65519.9, 2.0**-25, -7.75]


def strange(size: int, dtype: Any = np.float32) -> np.ndarray:
    """Numbers that begin with every pair of the strange ones, followed by random ones."""
    left, right = np.meshgrid(STRANGE, STRANGE)
    pairs = np.stack([left.ravel(), right.ravel()], axis=1).ravel()
    return np.concatenate([pairs, RANDOM.standard_normal(size)])[:size].astype(dtype)


@compiled
@pytest.mark.parametrize(("n", "grid", "threads"), [(1000, 3, 256), (5, 2, 64), (0, 1, 32)])
@pytest.mark.parametrize("width", [8, 32])
def test_sums_of_blocks_through_dynamic_shared_memory(
    width: int, n: int, grid: int, threads: int
) -> None:
    x, out = RANDOM.integers(-9, 9, n).astype(np.float32), np.zeros(grid, np.float32)
    launch("block_sums", grid, threads, width, True, shared=128, x=x, out=out, n=n, scale=0.5)
    assert out.sum() == x.sum() / 2


@compiled
def test_a_missing_barrier_of_dynamic_shared_memory_is_found() -> None:
    fields = {"x": np.ones(512, np.float32), "out": np.zeros(2, np.float32), "n": 512}
    with pytest.raises(Fault, match=r"shared-memory race: thread .* reads byte .* that thread"):
        launch("block_sums", 2, 256, 8, False, shared=128, **fields)


@compiled
def test_dynamic_shared_memory_ends_where_the_launch_says() -> None:
    fields = {"x": np.ones(512, np.float32), "out": np.zeros(2, np.float32), "n": 512}
    with pytest.raises(Fault, match=r"out of bounds: .* of shared memory, which has 64 bytes"):
        launch("block_sums", 2, 256, 8, True, shared=64, **fields)


@compiled
def test_more_threads_than_the_launch_bounds_allow_are_refused() -> None:
    with pytest.raises(Fault, match="compiled for 256 threads, not for 512"):
        launch("block_sums", 1, 512, 8, True, shared=256, n=0)


@compiled
@pytest.mark.parametrize(("kind", "dtype"), [("float", np.float32), ("double", np.float64)])
def test_every_thread_goes_its_own_way_through_a_switch(kind: str, dtype: Any) -> None:
    n = 1000
    numbers = strange(2 * n, dtype)
    a, b = numbers[::2], numbers[1::2]
    out, ways = np.zeros(n, dtype), np.zeros(n, np.int32)
    counted = launch("operations", 4, 256, kind, more=numbers, out=out, counters=ways, n=n)
    small = np.where(np.abs(b) < 1e9, b, 0.0)
    with np.errstate(all="ignore"):
        wanted = [a + b, a - b, a * b, a / b, np.sqrt(a), a * b + a, np.where(a < b, a, b),
                  a.astype(np.float32), np.trunc(small), np.trunc(small)]  # fmt: skip
    chosen = np.choose(ways, [np.asarray(one, dtype) for one in wanted])
    judged = (ways < 8) | (np.abs(b) < 1e9)  # larger numbers do not fit in an integer
    np.testing.assert_array_equal(out[judged], chosen[judged])
    assert counted["fma"] == counted["approximate"] == counted["fusable"] == 0


@compiled
def test_fma_rounds_once_and_is_counted() -> None:
    x, out, more = strange(256), np.zeros(256, np.float32), np.zeros(256)
    x[:] = np.where(np.abs(x) < 1e18, x, 0.1)
    counted = launch("fused", 1, 256, x=x, out=out, more=more, scale=0.1)
    wide = x.astype(np.float64)
    exact = (wide * wide).astype(np.longdouble) + np.longdouble(np.float32(0.1))
    np.testing.assert_array_equal(out, exact.astype(np.float32))
    assert counted["fma"] == 512
    assert more.tolist() == [float(Fraction(a) * Fraction(0.1) + Fraction(a)) for a in wide]


@compiled
def test_16_bit_formats_are_rounded_to_nearest_one_and_two_at_a_time() -> None:
    torch = pytest.importorskip("torch")
    n = 256
    x = strange(n)
    more, out = np.zeros(8 * n, np.uint16), np.zeros(6 * n, np.float32)
    launch("narrowed", 1, n, x=x, more=more, out=out, scale=1.0)
    swapped = x.reshape(-1, 2)[:, ::-1].ravel()
    for k, dtype in enumerate((torch.bfloat16, torch.float16)):
        narrow = torch.from_numpy(x.copy()).to(dtype)
        pairs = torch.from_numpy(np.stack([x, swapped], axis=1)).to(dtype)
        bits = more[4 * n * k :][: 4 * n]
        found = torch.from_numpy(bits.view(np.int16).copy()).view(dtype)
        for start, want in ((0, narrow), (n, narrow), (2 * n, pairs.flatten())):
            torch.testing.assert_close(
                found[start : start + want.numel()], want, rtol=0, atol=0, equal_nan=True
            )
        np.testing.assert_array_equal(out[k * n :][:n], narrow.float().numpy())
        np.testing.assert_array_equal(out[(2 + 2 * k) * n :][: 2 * n], pairs.float().T.flatten())


@compiled
def test_vectors_of_16_bytes_are_counted_and_must_be_aligned() -> None:
    x, out = strange(4004), np.zeros(4004, np.float32)
    counted = launch("vectors", 2, 128, x=x, out=out, n=4000)
    wanted = x.copy()
    wanted[:4000:4] *= -1
    np.testing.assert_array_equal(out[:4000], wanted[:4000])
    assert not out[4000:].any()
    warps = -(-1000 // 32)
    assert counted["ld.global.128"] == counted["st.global.128"] == warps
    assert counted["ld.global.bytes"] == counted["st.global.bytes"] == 16000
    for name, shifted in (("x", {"x": x[1:]}), ("out", {"out": out[1:]})):
        with pytest.raises(
            Fault, match=f"misaligned: thread 0 touches 16 bytes at byte 0 of {name}"
        ):
            launch("vectors", 2, 128, **{"x": x, "out": out, "n": 4000, **shifted})
    with pytest.raises(Fault, match=r"out of bounds: .* of out, which has"):
        launch("vectors", 2, 128, x=x, out=out[:3996], n=4000)


@compiled
def test_arrays_in_local_memory_and_variables_of_the_module() -> None:
    x, out, counters = strange(256), np.zeros(32, np.float32), np.zeros(1, np.int32)
    picks = [3, 1, 4, 1, 5]
    fields = {"x": x, "out": out, "counters": counters, "picks": picks}
    launch("in_local_memory", 1, 32, rest=(np.int32(3),), **fields)
    before = counters[0]
    launch("in_local_memory", 1, 32, rest=(np.int32(3),), **fields)
    thread = np.arange(32)
    place = (thread + np.take(picks, (thread + 3) % 5)) & 7
    k = place * 3 & 7  # 3 * 3 = 1 modulo 8
    weights = np.array([1.0, 0.5, -2.0, 4.0], np.float32)[thread % 4]
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out, x[8 * thread + k] * weights)
    assert (before, counters[0]) >= (100, 101) and counters[0] == before + 1
    with pytest.raises(Fault, match="undefined value"):
        launch("in_local_memory", 1, 32, rest=(np.int32(2),), **fields)  # leaves half unwritten


@compiled
def test_functions_that_are_called() -> None:
    x, out = np.arange(64.0, dtype=np.float32), np.zeros(64, np.float32)
    launch("calls", 1, 64, x=x, out=out, n=64, small=3)
    i = np.arange(64)
    doubled = np.where(2 * i < 64, 2.0 * i, 0.0)
    wanted = 3 * i + np.where(2 * i < 64, 3 * doubled, -1) + i * doubled - 1
    np.testing.assert_array_equal(out, wanted.astype(np.float32))


@compiled
def test_bits() -> None:
    x, out = strange(128), np.zeros((128, 8), np.uint32)
    n = 10**12 + 7
    launch("bits", 1, 128, x=x, more=out, n=n)
    for b, a in enumerate(x.view(np.uint32).tolist()):
        signed = a - 2**32 if a >> 31 else a
        rest = n // (b + 1) * n
        rest = (rest + 2**63) % 2**64 - 2**63
        divisor = a + 1 if a + 1 < 2**32 else 0
        wanted = [
            (a & 0xFFFF) | (b & 0xFFFF) << 16,
            (a >> 5 & 0x7F) | b << 16,
            a.bit_count() + (32 - b.bit_length()) * 64,
            (b << 32 | a) << 7 >> 32,
            min(signed, b) ^ max(a, b),
            a * b >> 32,
            a // (b + 1) + a % (b + 3),
            abs(rest) % divisor * (1 if rest > 0 else -1),
        ]
        assert out[b].tolist() == [one & 0xFFFFFFFF for one in wanted], (a, b)


@compiled
def test_votes_and_shuffles_within_parts_of_a_warp() -> None:
    x, out, seen = strange(64), np.zeros((3, 64), np.float32), np.zeros((2, 4), np.int32)
    x[32:] = 2.0
    launch("votes", 1, 64, x=x, out=out, counters=seen)
    for warp, lanes in enumerate(x.reshape(2, 32)):
        positive = sum(1 << int(i) for i in np.flatnonzero(lanes > 0))
        outcome = int((lanes > 5).any()) + 2 * int((lanes > -5).all())
        assert seen[warp].view(np.uint32).tolist() == [positive, positive.bit_count(), outcome, 0]
    i = np.arange(64)
    at, lane = i // 8 * 8, i % 32
    np.testing.assert_array_equal(out[0], x[at + (i + 3) % 8])
    np.testing.assert_array_equal(out[1], x[np.where(i % 8 < 6, i + 2, i)])
    np.testing.assert_array_equal(out[2], x[np.where(lane < 5, i, i - 5)])


@compiled
def test_lanes_that_come_late_to_an_exchange_are_waited_for() -> None:
    x, out = np.arange(64.0, dtype=np.float32), np.zeros(64, np.float32)
    launch("late_lanes", 1, 64, x=x, out=out)
    wanted = x.copy()
    for _ in range(3):
        for i in range(64):
            for k in range(i % 5):
                if wanted[i] > 1000:
                    break
                wanted[i] = wanted[i] * 2 + k
        wanted = wanted + wanted[np.arange(64) ^ 1]
    np.testing.assert_array_equal(out, wanted)


# (acquire, release, a barrier before the release, a barrier after the acquire)
PROTOCOLS = [(True,) * 4, *((True,) * k + (False,) + (True,) * (3 - k) for k in range(4))]


@compiled
@pytest.mark.parametrize("schedule", [None, 1, 2, 3])
@pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)
def test_blocks_that_wait_for_each_other(protocol: tuple[bool, ...], schedule: int | None) -> None:
    rows, threads = 12, 128
    out, counters = np.zeros((rows + 1, threads), np.float32), np.zeros(2, np.int32)
    out[0] = np.arange(threads)

    def go() -> None:
        launch(
            "in_turns", 5, threads, *protocol,
            shared=16, schedule=schedule, out=out, counters=counters, rows=rows,
        )  # fmt: skip

    if all(protocol):
        go()
        np.testing.assert_array_equal(out[rows], (out[0] + 1) * 2**rows - 1)
        assert counters.tolist() == [rows + 5, rows]
    else:
        with pytest.raises(Fault, match="race between CTAs"):
            go()


@compiled
def test_blocks_that_wait_for_ever_are_found() -> None:
    out, counters = np.zeros((5, 128), np.float32), np.array([1, 0], np.int32)
    with pytest.raises(Fault, match="deadlock: 3 CTAs"):
        launch(
            "in_turns", 3, 128, True, True, True, True,
            shared=16, out=out, counters=counters, rows=4,
        )  # fmt: skip


def test_names_of_kernels_are_read() -> None:
    assert parse("_ZN9fusedstep4cuda5phaseILi2ELin1ELb1ELNS0_4UnitE3EfEEvNS0_5ListsE") == Name(
        "fusedstep::cuda::phase", (2, -1, True, 3, "float")
    )
    assert parse("_ZN7samples4bitsENS_4TaskE") == Name("samples::bits")
    assert parse("_Z4bits4Task") == parse("bits") == Name("bits")
    assert str(Name("fusedstep::cuda::phase", (2, -1, True))) == "phase<2, -1, true>"
    with pytest.raises(ValueError, match="not understood"):
        parse("_ZN1a1bIS_E1cEv")


def test_a_module_without_a_kernel_of_that_name_is_refused() -> None:
    with pytest.raises(Fault, match="no entry k in this module"):
        Kernel(Module(".visible .entry other() { ret; }"), "k")
