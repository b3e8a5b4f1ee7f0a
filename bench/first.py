"""`python -m bench.first`: the first minutes on a new kind of GPU. Each experiment decides.

It prints as it goes, so that whatever stops it leaves the numbers so far. Races and launches are
those of `bench.step`; here are the questions that a race does not answer.
"""

import argparse
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import fusedstep.optim
from bench.clock import copy_bandwidth
from bench.devices import DEVICES, Cuda
from bench.extra import on_device
from bench.lists import DTYPES, LISTS, ParameterList, parameters
from bench.optimizers import RULES
from bench.providers import OURS, OURS_TRITON
from fusedstep.backends import cuda
from fusedstep.gpu.cut import UNITS, Height

STEPS = 5
TRAINER = "adafactor-hf-trainer"
HEIGHTS = (256, 128, 64, 32, 16)
UPDATE_ELEMENTS = (1 << 16, 1 << 17, 1 << 18)
HOST_LISTS = ("4096x4096", "llama-1b", "2000 small")
PEERS = {"adamw": ("torch-fused", "torch-foreach"), TRAINER: ("transformers",)}
CLOCKS = "clocks.sm,clocks.mem,power.draw,temperature.gpu"
Lines = list[str]


def list_named(name: str) -> ParameterList:
    """A list of the bench, or one matrix, such as 11008x4096."""
    return LISTS.get(name) or ParameterList(name, (tuple(map(int, name.split("x"))),))


def optimizer_of(rule: str, name: str, dtype: str, provider: str) -> torch.optim.Optimizer:
    params = parameters(list_named(name).tensors(DTYPES[dtype], "cuda"))
    return RULES[rule].providers_on("cuda")[provider](params)


def label(kernel: str) -> str:
    """The kind of work of one of our CUDA kernels, else the start of the name."""
    kind = re.search(r"phase<\D*(\d+), (.*?)>\(", kernel)
    name = f"{UNITS[int(kind[1])]} <{kind[2]}>" if kind else kernel[:60]
    if kernel.startswith("phase_"):  # Triton's
        name = " ".join(kernel.removeprefix("phase_").rsplit("_", 1))
    return name


def kernels(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Microseconds of each kernel of a step, the longest first. CUDA's may start before the kernel
    that they wait for has ended, so the sum can be more than the step takes."""
    for _ in range(3):
        optimizer.step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(STEPS):
            optimizer.step()
        torch.cuda.synchronize()
    spent: dict[str, float] = {}
    for event in on_device(seen):
        name = label(event.name())
        spent[name] = spent.get(name, 0.0) + event.duration_ns() / 1e3 / STEPS
    return dict(sorted(spent.items(), key=lambda item: -item[1]))


def clocks() -> str:
    """The GPU's clocks and power under the load of a first read."""
    optimizer = optimizer_of(TRAINER, "llama-1b", "bfloat16", OURS)
    optimizer.step()
    torch.cuda.synchronize()
    for _ in range(200):  # half a second of work, queued
        optimizer.step()
    command = ["nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    torch.cuda.synchronize()
    return " | ".join(found.split("\n")[:2])


def phases() -> Lines:
    """Every kernel of a step by itself. Decides which one is worth work."""
    lines = []
    for rule, name, dtype, provider in (
        *((TRAINER, "llama-1b", dtype, p) for dtype in RULES[TRAINER].dtypes
          for p in (OURS, OURS_TRITON)),
        ("adafactor-torch", "llama-1b", "bfloat16", OURS),
        ("adafactor-torch", "llama-1b", "bfloat16", OURS_TRITON),
        ("adafactor-hf-defaults", "llama-1b", "bfloat16", OURS),
        (TRAINER, "llama-7b, 1 layer", "bfloat16", OURS),
        *((TRAINER, name, "bfloat16", p) for name in ("4096x4096", "1024x1024", "4096x11008")
          for p in (OURS, OURS_TRITON)),
        *(("adamw", "1e9", dtype, p) for dtype in ("float32", "bfloat16")
          for p in (OURS, OURS_TRITON)),
    ):  # fmt: skip
        spent = kernels(optimizer_of(rule, name, dtype, provider))
        lines.append(f"{rule}, {name}, {dtype}, {provider}: {sum(spent.values()):.1f} us")
        lines += [f"    {us:9.1f}  {kernel}" for kernel, us in list(spent.items())[:10]]
        torch.cuda.empty_cache()
    return lines


def unit_sizes() -> Lines:
    """Heights of a unit of the first read, and sizes of one of the second. Decides UNIT_SIZES."""
    lines, usual = [], cuda.UNIT_SIZES
    lone = dict.fromkeys(
        usual.programs, 1
    )  # never a small bucket: the height is the one we ask for
    try:
        for name in ("4096x4096", "1024x1024", "11008x4096", "llama-1b"):
            for rows in HEIGHTS if name != "llama-1b" else (512, 256, 128):
                cuda.UNIT_SIZES = dataclasses.replace(
                    usual, unit=Height(rows, 2048), programs=lone, least_elements=1
                )
                lines.append(first_and_second(name, f"{rows} rows"))
            cuda.UNIT_SIZES = usual
            lines.append(first_and_second(name, "as chosen"))
        for elements in UPDATE_ELEMENTS:
            cuda.UNIT_SIZES = dataclasses.replace(usual, update_elements=elements)
            lines.append(first_and_second("llama-1b", f"{elements} elements in the second read"))
    finally:
        cuda.UNIT_SIZES = usual
    return lines


def first_and_second(name: str, what: str) -> str:
    spent = kernels(optimizer_of(TRAINER, name, "bfloat16", OURS))
    parts = {kind: 0.0 for kind in ("STATISTICS", "COLUMNS", "UPDATE")}
    for kernel, us in spent.items():
        if (kind := kernel.split(" ")[0]) in parts:
            parts[kind] += us
    told = ", ".join(f"{kind} {us:.1f}" for kind, us in parts.items())
    return f"{name}, {what}: {sum(spent.values()):.1f} us ({told})"


def host() -> Lines:
    """Host time of a step when nothing waits for the device. Decides what the host must save."""
    lines = []
    for rule, peers in PEERS.items():
        for name in HOST_LISTS:
            if not RULES[rule].races_on(LISTS[name]):
                continue
            for provider in (OURS, OURS_TRITON, *peers):
                step = optimizer_of(rule, name, "bfloat16", provider).step
                step()
                device = Cuda()
                samples = [device.sample(step, 3).host_seconds or 0.0 for _ in range(15)]
                told = f"{1e6 * sorted(samples)[7]:8.1f} us, at best {1e6 * min(samples):8.1f}"
                lines.append(f"{rule}, {name}, {provider}: {told}")
                torch.cuda.empty_cache()
    return lines


def replays() -> Lines:
    """A step replayed by a CUDA graph against an eager one: the bits, and the time."""
    lines = []
    for backend in ("cuda", "triton"):
        for make in (fusedstep.optim.AdamW, fusedstep.optim.Adafactor):
            torch.manual_seed(0)
            values = [torch.randn(size, device="cuda") for size in ((512, 512), (300, 70), (9,))]
            found = []
            for captured in (False, True):
                params = [torch.nn.Parameter(value.clone()) for value in values]
                grads = [torch.ones_like(value) for value in values]
                for param, grad in zip(params, grads, strict=True):
                    param.grad = grad
                optimizer = make(params, capturable=True, backend=backend)
                optimizer.step()
                if captured:
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(graph):
                        optimizer.step()
                    step: Callable[[], Any] = graph.replay
                else:
                    step = optimizer.step
                for _ in range(3):
                    for grad in grads:
                        grad.mul_(0.7)
                    step()
                found.append([param.detach().clone() for param in params])
                us = 1e6 * Cuda().sample(step, 50).seconds
                lines.append(f"{backend}, {make.__name__}, captured {captured}: {us:.1f} us a step")
            same = all(map(torch.equal, *found))
            lines.append(
                f"{backend}, {make.__name__}: the bits are {'equal' if same else 'NOT EQUAL'}"
            )
    return lines


def one_step(backend: str) -> None:
    """Two steps, for a profiler."""
    chosen = ParameterList("counted", ((8192, 2048),) * 12)
    params = parameters(chosen.tensors(torch.bfloat16, "cuda"))
    provider = OURS_TRITON if backend == "triton" else OURS
    optimizer = RULES[TRAINER].providers_on("cuda")[provider](params)
    for _ in range(2):
        optimizer.step()
    torch.cuda.synchronize()


EXPERIMENTS = {"phases": phases, "unit_sizes": unit_sizes, "host": host, "replays": replays}


def main() -> int:
    parser = argparse.ArgumentParser("python -m bench.first", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--out", type=Path, help="a folder for first.json")
    parser.add_argument("--one-step", choices=("cuda", "triton"), help="only two steps")
    asked = parser.parse_args()
    device = DEVICES["cuda"]
    if reason := device.why_absent():
        print(reason, file=sys.stderr)
        return 1
    if asked.one_step:
        one_step(asked.one_step)
        return 0
    facts = device.facts()
    print(device.title(facts))
    copy, _ = copy_bandwidth(device, lambda *_: None)
    torch.cuda.empty_cache()
    print(f"copy: {copy / 1e9:.0f} GB/s\n{clocks()}", flush=True)
    found: dict[str, Any] = {"facts": facts, "copy_bytes_a_second": copy}
    failed = False
    for name in asked.only:
        print(f"\n{name}: {(EXPERIMENTS[name].__doc__ or '').splitlines()[0]}", flush=True)
        try:
            found[name] = EXPERIMENTS[name]()
        except Exception as error:  # the others may still tell something
            found[name], failed = [f"failed: {type(error).__name__}: {error}"], True
        print("\n".join(found[name]), flush=True)
    if asked.out:
        asked.out.mkdir(parents=True, exist_ok=True)
        (asked.out / "first.json").write_text(json.dumps(found, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
