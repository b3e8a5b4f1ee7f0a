"""Tests of the simulator: sample kernels give the right values, and planted faults are reported."""

from __future__ import annotations

import pytest
import torch

from .samples import launch, run_launches

pytest_plugins = [f"{__package__}.fixtures"]

SEEDS = (0, 1, 2, 3)


# Kernels that are correct.


def block_sums(samples):
    x = torch.arange(5000.0) % 17
    out, _ = launch(samples, "block_sums", x, 7, grid=7, block=256, shared=32, n=len(x))
    every = torch.arange(len(x)) // 256 % 7
    assert out.tolist() == [x[every == k].sum() for k in range(7)]


def turn_warps(samples):
    x = torch.arange(96.0)
    out, _ = launch(samples, "turn_warps", x, 96, block=96, shared=384)
    assert torch.equal(out, x.view(3, 32).flip(1).flatten())


def exchanges(samples):
    x = torch.rand(64, generator=torch.Generator().manual_seed(1))
    out = launch(samples, "exchanges", x, 11 * 64, block=64)[0].view(11, 64)
    lane = torch.arange(64) % 32
    base, x2 = torch.arange(64) - lane, x.view(2, 32)
    bits = (x2 > 0.5).long() << torch.arange(32)
    sources = [
        lane * 7 % 32,
        lane // 8 * 8 + 5,
        torch.where(lane < 3, lane, lane - 3),
        torch.where(lane % 4 < 1, lane, lane - 1),
        torch.where(lane + 5 > 31, lane, lane + 5),
        torch.where(lane % 16 + 2 > 15, lane, lane + 2),
        lane ^ 9,
        lane ^ 2,
    ]
    for row, source in enumerate(sources):
        assert torch.equal(out[row], x[base + source]), row
    assert torch.equal(out[8].view(2, 32)[:, 0].long(), bits.sum(1) >> 16)
    assert torch.equal(
        out[9].view(2, 32)[:, 0], ((x2 > 0.95).any(1) + 2 * (x2 > 0.05).all(1)) * 1.0
    )
    assert torch.equal(out[10], x[base + torch.where(lane % 2 == 0, lane ^ 4, lane ^ 8)])


def stages(samples, name="stages"):
    x = torch.rand(512, generator=torch.Generator().manual_seed(2))
    options = {"grid": 6, "block": 64, "shared": 4, "n": 512, "stages": 9}
    out, counted = launch(samples, name, x, 9 * 512, 10, **options)
    for row in out.view(9, 512):
        x = 0.5 * (x.roll(1) + x.roll(-1))
        assert torch.equal(row, x)
    assert counted.tolist() == [9 * 8 + 6] + [8] * 9


def stages_with_fences(samples):
    stages(samples, "stages with fences")


def locked(samples):
    out, counted = launch(samples, "locked", (), 1, 1, grid=40, block=3)
    assert out.tolist() == [39.0] and counted.tolist() == [0]


def copy_vectors(samples):
    x = torch.rand(1000)
    out, _ = launch(samples, "copy_vectors", x, 1000, grid=2, block=128, n=1000)
    assert torch.equal(out, x)


def blocks_that_wait_for_the_block_before(samples):
    _, counted = launch(samples, "wait_for_the_block_before", (), 0, 8, grid=8, block=64)
    assert counted.tolist() == [1] * 8


KERNELS = (
    block_sums,
    turn_warps,
    exchanges,
    stages,
    stages_with_fences,
    locked,
    copy_vectors,
    blocks_that_wait_for_the_block_before,
)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_kernels_compute_what_they_should(kernel, seed, samples, controls):
    controls.seed(seed)
    kernel(samples)


@pytest.mark.parametrize("resident", [1, 2, 5, 100])
def test_blocks_that_wait_for_earlier_ones_get_on_with_any_number_resident(
    resident, samples, controls
):
    controls.resident(resident)
    stages(samples)
    blocks_that_wait_for_the_block_before(samples)


def order_of_arrival(samples):
    return launch(samples, "arrivals", (), 256, 1, grid=4, block=64)[0].tolist()


def test_without_a_seed_threads_come_in_order(samples):
    assert order_of_arrival(samples) == list(range(256))


def test_a_seed_decides_the_order_and_does_so_every_time(samples, controls):
    orders = []
    for seed in (1, 1, 2):
        controls.seed(seed)
        orders.append((order_of_arrival(samples), order_of_arrival(samples)))
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][0] != orders[0][1]  # each launch has its own order
    assert sorted(orders[0][0]) == list(range(256))


def test_shared_memory_that_nobody_has_written_is_nan(samples):
    for _ in range(2):
        turn_warps(samples)
        out, _ = launch(samples, "read_shared", (), 96, block=96, shared=384)
        assert out.isnan().all()


def test_a_missing_barrier_shows_under_some_seed_even_without_tsan(samples, controls):
    x, sums = torch.ones(1024), set()
    for seed in range(10):
        controls.seed(seed)
        name = "block_sums without a barrier"
        out, _ = launch(samples, name, x, 1, block=1024, shared=128, n=1024)
        sums.add("right" if out.item() == 1024 else "wrong")
    assert "wrong" in sums


# Kernels that are wrong: (kernel, its launch, the message)
FAULTS = {
    "threads wait at two barriers": (
        "two_barriers",
        {"block": 64, "n": 16},
        r"divergent __syncthreads: .* at samples.cu:\d+ and at samples.cu:\d+ \(kernel "
        r"samples::two_barriers, block 0, thread \d+\)",
    ),
    "threads exit before a barrier": (
        "exit_before_the_barrier",
        {"block": 64, "n": 40},
        r"divergent __syncthreads at samples.cu:\d+: 40 of 64 threads of the block have exited",
    ),
    "a mask names lanes that have exited": (
        "exit_before_the_shuffle",
        {"block": 64, "n": 3, "out": 64},
        r"the mask 0xffffffff at samples.cu:\d+ names lane [012], which has exited",
    ),
    "a mask names lanes that do not exist": (
        "shuffle_with",
        {"block": 40, "n": 32, "out": 40},
        r"the mask 0xffffffff at samples.cu:\d+ names lane 8, which does not exist",
    ),
    "a lane is not in its own mask": (
        "shuffle_with",
        {"n": 32, "mask": 0xFFFF, "out": 32},
        r"lane (1[6-9]|2\d|3[01]) is not in its own mask 0x0000ffff at samples.cu:\d+",
    ),
    "a shuffle reads a lane outside its mask": (
        "shuffle_with",
        {"block": 1, "n": 32, "mask": 1, "out": 32},
        r"a shuffle at samples.cu:\d+ reads lane 1, which is not in its mask 0x00000001",
    ),
    "a shuffle's width is no power of two": ("shuffle_with", {"n": 12, "out": 32}, "not 12, at"),
    "half of a warp waits at another barrier": (
        "barrier_or_shuffle",
        {"n": 16},
        r"names lane \d+, which waits at samples.cu:\d+",
    ),
    "blocks wait for each other": (
        "wait_for_the_next_block",
        {"grid": 4, "block": 64, "counters": 4},
        r"deadlock: every resident block \(\d, \d, \d, \d\) waits for a counter that nobody",
    ),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_reported_and_the_next_launch_is_well(fault, seed, samples, controls):
    kernel, options, message = FAULTS[fault]
    controls.seed(seed)
    with pytest.raises(RuntimeError, match="^simcuda: .*" + message):
        launch(samples, kernel, **options)
    block_sums(samples)


def test_a_block_that_waits_for_one_that_cannot_start_is_a_deadlock(samples, controls):
    controls.resident(2)
    with pytest.raises(RuntimeError, match=r"deadlock: .* and 6 blocks have not started"):
        launch(samples, "wait_for_the_next_block", (), 0, 8, grid=8)


def test_a_stack_that_runs_over_ends_the_process():
    assert run_launches("plain", [{"name": "deep", "out": 1}]).returncode < 0
