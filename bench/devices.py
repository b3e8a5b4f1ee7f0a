"""The devices that can be raced on: how each keeps time, what it is called, what is raced there."""

import gc
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from bench.machine import cpu_model, installed

Step = Callable[[], object]
Facts = dict[str, str | int | None]

# Of one CPU, over a round.
TOLERATED_LOAD = 0.05
# Times the L2 cache: of a list up to there a step finds part in L2 that the step before left.
NEAR_CACHE = 4


@dataclass(frozen=True)
class Sample:
    """Of one step; the host is free again earlier than a device that works on."""

    seconds: float
    host_seconds: float | None = None


def cpu_seconds_of_others() -> float | None:
    """CPU time used on this machine by everyone else since boot; None where nobody counts it."""
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
    lists = ("10x8M", "68M", "small", "tiny", "host")
    copy_elements = 1 << 26
    budget = (
        4.0  # seconds of timed rounds a race, so that all of `make bench` fits into five minutes
    )
    race_seconds: float | None = None  # after which a race is given up
    # What a race leaves in the allocator spares a peer of the next one new pages, and so half of
    # its time: each has a process of its own.
    shares_process = False
    legend = ""

    def why_absent(self) -> str:
        return ""

    def prepare(self, held_bytes: int, host_bound: bool) -> None:
        """Nothing: a list that fits a cache is measured in it, and its share of copy shows it."""

    def sample(self, step: Step, repeats: int) -> Sample:
        begin = time.perf_counter()
        for _ in range(repeats):
            step()
        return Sample((time.perf_counter() - begin) / repeats)

    def watch(self) -> Callable[[], bool]:
        """Begins to look, and tells later whether others left the device alone since."""
        others_before, begin = cpu_seconds_of_others(), time.perf_counter()

        def was_quiet() -> bool:
            elapsed, others_after = time.perf_counter() - begin, cpu_seconds_of_others()
            if others_before is None or others_after is None:
                return True
            # The kernel charges whole ticks, so each of our threads may leave one on the wrong
            # account.
            rounding = torch.get_num_threads() / os.sysconf("SC_CLK_TCK")
            return others_after - others_before <= TOLERATED_LOAD * elapsed + rounding

        return was_quiet

    def release_memory(self) -> None:
        """Before other processes need it."""

    def cache_note(self, held_bytes: int, host_bound: bool) -> str:
        return ""

    def facts(self) -> Facts:
        return {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        }

    def title(self, facts: Facts) -> str:
        return f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads"


class Cuda:
    """An NVIDIA or AMD GPU: the current one of torch's cuda devices. Other processes cannot be
    seen there, so no round is rejected."""

    kind = "cuda"
    lists = (
        # What the targets are about comes first: where time runs out, the last ones are missing.
        *("1e9", "llama-1b", "4096x4096", "t5-xl", "2000 small", "small", "host"),
        *("32768x8192", "16384x16384", "gpt2", "lora", "512 experts"),
    )
    copy_elements = 1 << 29  # 2 GiB into 2 GiB
    budget = 1.0  # seconds of timed rounds a race: rounds are short
    race_seconds: float | None = 120.0  # a kernel that waits for ever would take all time there is
    shares_process = True  # no page is new after the warm-up, and a start takes longer than a race
    legend = f"""
fusedstep runs the backend that the line above names, fusedstep-triton that of Triton.
On the GPU, ms is taken by events around several steps back to back: the longer one of the device's
and the host's time. host ms: until opt.step() returned, when the device may still be at work. A
list of at most {NEAR_CACHE} times the L2 cache says "L2 flushed": by reading, before each step,
which events of its own time then, or the host where that takes longer."""

    def __init__(self) -> None:
        self.flush: Step | None = None  # before each step of a list that L2 would help

    def why_absent(self) -> str:
        return "" if torch.cuda.is_available() else "torch finds no cuda device"

    def prepare(self, held_bytes: int, host_bound: bool) -> None:
        """Before the samples of a list."""
        self.flush = None
        if self.is_flushed(held_bytes, host_bound):
            # Read, not written: lines that were written would be carried to memory during the step.
            values = torch.zeros(2 * self._l2_bytes() // 4, device="cuda")
            self.flush = partial(torch.sum, values, 0, out=torch.empty((), device="cuda"))

    def is_flushed(self, held_bytes: int, host_bound: bool) -> bool:
        """What the host is measured by needs no cold cache."""
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
        """The longer one of both times: while the device flushes, the host works ahead, so that
        events see too little of what it takes."""
        pairs = []
        host_seconds = 0.0
        for _ in range(repeats):
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()  # else launches would wait for room in the device's queue
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
        return getattr(torch.cuda.get_device_properties(), "L2_cache_size", 0)

    def watch(self) -> Callable[[], bool]:
        return lambda: True

    def release_memory(self) -> None:
        """An error where an earlier kernel failed: nothing runs in this process any more."""
        gc.collect()  # what an optimizer holds in a cycle
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def cache_note(self, held_bytes: int, host_bound: bool) -> str:
        return "L2 flushed" if self.is_flushed(held_bytes, host_bound) else ""

    def facts(self) -> Facts:
        own = torch.cuda.get_device_properties()
        return {
            "gpu": own.name,
            "gpus": torch.cuda.device_count(),
            "driver": driver(),
            "cuda": torch.version.cuda or torch.version.hip,
            "compute_capability": f"{own.major}.{own.minor}",
            "multiprocessors": own.multi_processor_count,
            "l2_bytes": getattr(own, "L2_cache_size", None),
            "gpu_bytes": own.total_memory,
            "triton": installed("triton"),
            "fusedstep_takes": taken_by_auto(self.kind),
            "cuda_waves": os.environ.get("FUSEDSTEP_CUDA_WAVES", "0"),
            "triton_waves": os.environ.get("FUSEDSTEP_TRITON_WAVES", "0"),
            **Cpu().facts(),
        }

    def title(self, facts: Facts) -> str:
        return (
            f"{facts['gpu']}, driver {facts['driver']}, CUDA {facts['cuda']}, "
            f"triton {facts['triton']}; {facts['cpu']}, {facts['cores']} cores; "
            f"fusedstep takes its backend {facts['fusedstep_takes']}, waves "
            f"{facts['cuda_waves']} (cuda) {facts['triton_waves']} (triton)"
        )


def taken_by_auto(kind: str) -> str:
    """The backend behind `fusedstep`'s own rows, with what it was built for."""
    try:
        from fusedstep import backends

        backend = backends.choose(None, torch.device(kind), f"a tensor on {kind}")
    except (ImportError, RuntimeError) as error:
        return f"none ({error})"
    return f"{backend.name} ({backend.describe()})"


def driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return next(iter(said.stdout.split()), "unknown")


Device = Cpu | Cuda
DEVICES: dict[str, Device] = {device.kind: device for device in (Cpu(), Cuda())}
