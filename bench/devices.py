"""The devices that can be raced on: how each keeps time, what it is called, what is raced there."""

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.machine import cpu_model, installed

Step = Callable[[], object]
Facts = dict[str, str | int | None]

# Of one CPU, over a round.
TOLERATED_LOAD = 0.05


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
    dtypes: tuple[str, ...] | None = None  # of every rule; None: each rule's own
    copy_elements = 1 << 26
    budget = (
        4.0  # seconds of timed rounds a race, so that all of `make bench` fits into five minutes
    )
    race_seconds: float | None = None  # after which a race is given up
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

    def cache_note(self, held_bytes: int) -> str:
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
        *("1e9", "llama-1b", "t5-xl", "4096x4096", "32768x8192", "16384x16384"),
        *("2000 small", "small", "tiny", "host", "gpt2", "512 experts", "lora"),
    )
    dtypes: tuple[str, ...] | None = ("float32", "bfloat16")
    copy_elements = 1 << 29  # 2 GiB into 2 GiB
    budget = 1.0  # rounds are short, and starting a process takes longer
    race_seconds: float | None = 120.0  # a kernel that waits for ever would take all time there is
    legend = """
fusedstep runs the backend that the line above names, fusedstep-triton that of Triton.
On the GPU, ms is taken by events around several steps back to back: the longer one of the device's
and the host's time. host ms: until opt.step() returned, when the device may still be at work. Lists
that fit the L2 cache say so: it is flushed before each of their steps, which events of its own
time."""

    def __init__(self) -> None:
        self.flushed: torch.Tensor | None = None  # what is written to flush the L2 cache

    def why_absent(self) -> str:
        return "" if torch.cuda.is_available() else "torch finds no cuda device"

    def prepare(self, held_bytes: int, host_bound: bool) -> None:
        """Before the samples of a list; what the host is measured by needs no cold cache."""
        cache = self._l2_bytes()
        cold = held_bytes <= cache and not host_bound
        self.flushed = torch.empty(2 * cache, dtype=torch.int8, device="cuda") if cold else None

    def sample(self, step: Step, repeats: int) -> Sample:
        if self.flushed is not None:
            return self._sample_cold(step, repeats, self.flushed)
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

    def _sample_cold(self, step: Step, repeats: int, flushed: torch.Tensor) -> Sample:
        pairs = []
        host_seconds = 0.0
        torch.cuda.synchronize()
        for _ in range(repeats):
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flushed.zero_()
            first.record()
            begin = time.perf_counter()
            step()
            host_seconds += time.perf_counter() - begin
            last.record()
            pairs.append((first, last))
        torch.cuda.synchronize()
        seconds = sum(first.elapsed_time(last) for first, last in pairs) / 1e3
        return Sample(seconds / repeats, host_seconds / repeats)

    def _l2_bytes(self) -> int:
        return getattr(torch.cuda.get_device_properties(), "L2_cache_size", 0)

    def watch(self) -> Callable[[], bool]:
        return lambda: True

    def release_memory(self) -> None:
        torch.cuda.empty_cache()

    def cache_note(self, held_bytes: int) -> str:
        return "fits L2, flushed" if held_bytes <= self._l2_bytes() else ""

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
    return f"{backend.name} ({backend.about()})"


def driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return next(iter(said.stdout.split()), "unknown")


Device = Cpu | Cuda
DEVICES: dict[str, Device] = {device.kind: device for device in (Cpu(), Cuda())}
