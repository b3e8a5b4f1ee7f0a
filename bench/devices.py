"""The devices that we race on: how each keeps time, what it is called, and what we race there."""

import gc
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from bench.machine import cpu_name, installed

Step = Callable[[], object]
Facts = dict[str, str | int | None]

TOLERATED_LOAD = 0.05  # of one CPU by other processes, over a round
# A step finds part of a list in the L2 cache if the list is at most so many times as large.
NEAR_CACHE = 4


@dataclass(frozen=True)
class Sample:
    """The time of one step. The host is done earlier than a device that is still at work."""

    seconds: float
    host_seconds: float | None = None


def cpu_seconds_of_others() -> float | None:
    """CPU time that all other processes used since boot; None if the system does not count it."""
    try:
        with open("/proc/stat") as stat:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(
                int, stat.readline().split()[1:9]
            )
    except (OSError, ValueError):
        return None
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return busy - time.process_time()


class Cpu:
    kind = "cpu"
    lists = ("10x8M", "68M", "small", "tiny", "host", "8 matrices", "64 matrices")
    copy_elements = 1 << 26
    budget = 4.0  # seconds of timed rounds a race, so that `make bench` takes six to twelve minutes
    race_seconds: float | None = None  # a race that takes longer is given up
    # Each race has a process of its own. Otherwise memory that one race leaves in the allocator
    # spares a peer in the next race new pages, which are half of its time.
    shares_process = False
    measures_floor = True
    floor_is = "the time of a bare kernel over the same bytes"
    legend = """
The floor is the time of a bare kernel (csrc/cpu/floor.cpp), measured in the same rounds. It reads
what the rule must read and writes in place what the rule must write: the same bytes in as many
streams, by the same threads. But it computes nothing. A copy is no floor on a CPU, because it also
fetches the lines that it overwrites. A list that fits the caches stays there, for the floor too."""

    def why_absent(self) -> str:
        return ""

    def prepare(self, held_bytes: int, host_bound: bool) -> None:
        """Does nothing. A list that fits a cache is measured in cache, and so is its floor."""

    def sample(self, step: Step, repeats: int) -> Sample:
        begin = time.perf_counter()
        for _ in range(repeats):
            step()
        return Sample((time.perf_counter() - begin) / repeats)

    def watch(self) -> Callable[[], bool]:
        """Starts to watch. The result says later whether other processes left the CPU alone."""
        others_before, begin = cpu_seconds_of_others(), time.perf_counter()

        def was_quiet() -> bool:
            elapsed, others_after = time.perf_counter() - begin, cpu_seconds_of_others()
            if others_before is None or others_after is None:
                return True
            # The kernel counts whole ticks, so it may charge one of each of our threads to others.
            rounding = torch.get_num_threads() / os.sysconf("SC_CLK_TCK")
            return others_after - others_before <= TOLERATED_LOAD * elapsed + rounding

        return was_quiet

    def release_memory(self) -> None:
        """Does nothing: each race has a process of its own."""

    def cache_note(self, held_bytes: int, host_bound: bool) -> str:
        return ""

    def facts(self) -> Facts:
        return {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        }

    def title(self, facts: Facts) -> str:
        return f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads"


class Cuda:
    """An NVIDIA or AMD GPU: the current one of torch's cuda devices. We cannot see other processes
    there, so no round is rejected."""

    kind = "cuda"
    lists = (
        # The lists that the targets are about come first. If time runs out, the last are missing.
        *("llama-1b", "32 matrices", "1e9", "4096x4096", "t5-xl", "2000 small", "small", "host"),
        *("32768x8192", "16384x16384", "gpt2", "lora", "512 experts", "8 matrices", "64 matrices"),
    )
    copy_elements = 1 << 29  # 2 GiB into 2 GiB
    budget = 1.0  # seconds of timed rounds a race: rounds are short
    race_seconds: float | None = 120.0  # or a kernel that waits for ever would take all the time
    # All races share a process: no page is new after the warm-up, and starting a process takes
    # longer than a race.
    shares_process = True
    measures_floor = False
    floor_is = "the same bytes at copy speed"
    legend = f"""
The floor is the same bytes at the speed of tensor.copy_. No bare kernel was measured on a GPU.
fusedstep runs the backend that the line above names; fusedstep-triton runs Triton's.
On the GPU, ms is the longer of two times: the device's, between events around several steps in a
row, and the host's. host ms: until opt.step() returned; the device may still be at work then. "L2
flushed": before each step we read other memory, so that the L2 cache holds nothing of the list,
and time each step by itself. We do so for lists of at most {NEAR_CACHE} times the L2 cache."""

    def __init__(self) -> None:
        self.flush: Step | None = None  # runs before each step, if L2 would help the list

    def why_absent(self) -> str:
        return "" if torch.cuda.is_available() else "torch finds no cuda device"

    def prepare(self, held_bytes: int, host_bound: bool) -> None:
        """Gets ready for the samples of a list."""
        self.flush = None
        if self.is_flushed(held_bytes, host_bound):
            # Reading is enough. After writing, the cache would write back during the step.
            values = torch.zeros(2 * self._l2_bytes() // 4, device="cuda")
            self.flush = partial(torch.sum, values, 0, out=torch.empty((), device="cuda"))

    def is_flushed(self, held_bytes: int, host_bound: bool) -> bool:
        """Lists that measure the host need no cold cache."""
        return held_bytes <= NEAR_CACHE * self._l2_bytes() and not host_bound

    def sample(self, step: Step, repeats: int) -> Sample:
        if self.flush is not None:
            return self._sample_cold(step, repeats, self.flush)
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        begin = time.perf_counter()
        for _ in range(repeats):
            step()
        host_seconds = time.perf_counter() - begin
        last.record()
        last.synchronize()
        return Sample(first.elapsed_time(last) / 1e3 / repeats, host_seconds / repeats)

    def _sample_cold(self, step: Step, repeats: int, flush: Step) -> Sample:
        """The longer of the device's and the host's time. The host works ahead while the device
        flushes, so the events alone would show too little of the host's time."""
        pairs = []
        host_seconds = 0.0
        for _ in range(repeats):
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()  # so that no launch waits for room in the device's queue
            flush()
            first.record()
            begin = time.perf_counter()
            step()
            host_seconds += time.perf_counter() - begin
            last.record()
            pairs.append((first, last))
        torch.cuda.synchronize()
        seconds = sum(first.elapsed_time(last) for first, last in pairs) / 1e3
        return Sample(max(seconds, host_seconds) / repeats, host_seconds / repeats)

    def _l2_bytes(self) -> int:
        return int(getattr(torch.cuda.get_device_properties(), "L2_cache_size", 0))

    def watch(self) -> Callable[[], bool]:
        return lambda: True

    def release_memory(self) -> None:
        """Raises if an earlier kernel failed, because nothing more runs in this process then."""
        gc.collect()  # optimizers may hold tensors in cycles
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def cache_note(self, held_bytes: int, host_bound: bool) -> str:
        return "L2 flushed" if self.is_flushed(held_bytes, host_bound) else ""

    def facts(self) -> Facts:
        device = torch.cuda.get_device_properties()
        return {
            "gpu": device.name,
            "gpus": torch.cuda.device_count(),
            "driver": driver(),
            "cuda": torch.version.cuda or torch.version.hip,
            "compute_capability": f"{device.major}.{device.minor}",
            "multiprocessors": device.multi_processor_count,
            "l2_bytes": getattr(device, "L2_cache_size", None),
            "gpu_bytes": device.total_memory,
            "triton": installed("triton"),
            "fusedstep_takes": taken_by_auto(self.kind),
            **Cpu().facts(),
        }

    def title(self, facts: Facts) -> str:
        return (
            f"{facts['gpu']}, driver {facts['driver']}, CUDA {facts['cuda']}, "
            f"triton {facts['triton']}; {facts['cpu']}, {facts['cores']} cores; "
            f"fusedstep takes its backend {facts['fusedstep_takes']}"
        )


def taken_by_auto(kind: str) -> str:
    """The backend behind the rows of `fusedstep`, and what it was built for."""
    try:
        from fusedstep import backends

        backend = backends.choose(None, torch.device(kind), f"a tensor on {kind}")
    except (ImportError, RuntimeError) as error:
        return f"none ({error})"
    return f"{backend.name} ({backend.describe()})"


def driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return next(iter(result.stdout.split()), "unknown")


Device = Cpu | Cuda
DEVICES: dict[str, Device] = {device.kind: device for device in (Cpu(), Cuda())}
