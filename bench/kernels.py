"""How long each kernel of a step takes on a GPU, by torch's profiler, for both backends. CUDA's may
start before the kernel that they wait for has ended, and that time counts twice."""

import argparse
import collections
import sys

import torch
from torch.profiler import ProfilerActivity, profile

from bench.extra import on_device
from bench.lists import DTYPES, LISTS, parameters
from bench.optimizers import RULES
from bench.providers import OURS, OURS_TRITON

STEPS = 5
RUNS = [  # rule, dtype; AdamW has one kernel for any dtype
    ("adamw", "float32"),
    *((rule, "bfloat16") for rule, entry in RULES.items() if entry.factored),
    ("adafactor-hf-trainer", "float32"),
]
NAME = 76  # characters


def kernels_of(rule: str, provider: str, dtype: str, name: str) -> collections.Counter[str]:
    """Microseconds that each kernel takes in a step."""
    params = parameters(LISTS[name].tensors(DTYPES[dtype], "cuda"))
    optimizer = RULES[rule].providers_on("cuda")[provider](params)
    for _ in range(3):
        optimizer.step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(STEPS):
            optimizer.step()
        torch.cuda.synchronize()
    spent: collections.Counter[str] = collections.Counter()
    for event in on_device(seen):
        spent[event.name()] += event.duration_ns() / 1e3 / STEPS
    return spent


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
                spent = kernels_of(rule, provider, dtype, asked.list)
            except Exception as error:  # Triton raises its own, and the other backend may work
                print(f"  failed: {error}")
                continue
            for kernel, microseconds in spent.most_common():
                print(f"  {microseconds:10.1f} us  {kernel[:NAME]}")
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
