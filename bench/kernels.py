"""How long each kernel of a step takes on a GPU, by torch's profiler, for both backends. CUDA's may
start before the kernel that they wait for has ended, so their times can add up to more than the
time in which the GPU is busy."""

import argparse
import collections
import re
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from bench.extra import on_device
from bench.lists import DTYPES, LISTS, ParameterList, parameters
from bench.optimizers import RULES
from bench.providers import OURS, OURS_TRITON
from fusedstep.gpu.cut import UNITS

STEPS = 5
RUNS = [  # rule, dtype
    *(("adamw", dtype) for dtype in RULES["adamw"].dtypes),
    *((rule, "bfloat16") for rule, entry in RULES.items() if entry.factored),
    ("adafactor-hf-trainer", "float32"),
]
NAME = 76  # characters


def label(kernel: str) -> str:
    """The kind of work of one of our kernels for factored rules, else the start of the name."""
    if kind := re.search(r"phase<\D*(\d+), (.*?)>\(", kernel):
        return f"{UNITS[int(kind[1])]} <{kind[2]}>"
    if kernel.startswith("phase_"):  # Triton's
        return " ".join(kernel.removeprefix("phase_").rsplit("_", 1))
    return kernel[:NAME]


def optimizer_of(
    rule: str, provider: str, dtype: str, chosen: ParameterList
) -> torch.optim.Optimizer:
    params = parameters(chosen.tensors(DTYPES[dtype], "cuda"))
    return RULES[rule].providers_on("cuda")[provider](params)


class Spent(NamedTuple):
    """Microseconds of a step: in which any kernel runs, and of each kernel."""

    busy: float
    kernels: collections.Counter[str]


def busy_ns(events: Iterable[Any]) -> int:
    """The time in which at least one of the events runs."""
    busy = until = 0
    for start, end in sorted((e.start_ns(), e.start_ns() + e.duration_ns()) for e in events):
        busy += max(0, end - max(start, until))
        until = max(until, end)
    return busy


def kernels_of(rule: str, provider: str, dtype: str, chosen: ParameterList) -> Spent:
    optimizer = optimizer_of(rule, provider, dtype, chosen)
    for _ in range(3):
        optimizer.step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(STEPS):
            optimizer.step()
        torch.cuda.synchronize()
    events = list(on_device(seen))
    spent: collections.Counter[str] = collections.Counter()
    for event in events:
        spent[label(event.name())] += event.duration_ns() / 1e3 / STEPS
    return Spent(busy_ns(events) / 1e3 / STEPS, spent)


def main() -> int:
    parser = argparse.ArgumentParser("python -m bench.kernels", description=__doc__)
    parser.add_argument("--list", choices=LISTS, default="llama-1b")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        print("torch finds no cuda device", file=sys.stderr)
        return 1
    for rule, dtype in RUNS:
        for provider in (OURS, OURS_TRITON):
            print(f"\n{provider}: {rule}, {asked.list}, {dtype}", flush=True)
            try:
                busy, spent = kernels_of(rule, provider, dtype, LISTS[asked.list])
            except Exception as error:  # Triton raises its own, and the other backend may work
                print(f"  failed: {error}")
                continue
            print(f"  {busy:10.1f} us  busy", flush=True)
            for kernel, microseconds in spent.most_common():
                print(f"  {microseconds:10.1f} us  {kernel}")
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
