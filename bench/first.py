"""`python -m bench.first`: the first minutes on a new kind of GPU. Each experiment decides.

It prints as it goes, so that whatever stops it leaves the numbers so far. `bench.step` races, and
`bench.kernels` takes a step apart; here are the questions that these do not answer.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fusedstep.optim
from bench.clock import copy_bandwidth
from bench.devices import DEVICES, Cuda
from bench.kernels import kernels_of, optimizer_of
from bench.lists import LISTS, ParameterList
from bench.optimizers import RULES
from bench.providers import OURS, OURS_TRITON
from fusedstep.backends import cuda
from fusedstep.gpu.unit_sizes import Height

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


def clocks() -> str:
    """The GPU's clocks and power under the load of a first read."""
    optimizer = optimizer_of(TRAINER, OURS, "bfloat16", LISTS["llama-1b"])
    optimizer.step()
    torch.cuda.synchronize()
    for _ in range(200):  # half a second of work, queued
        optimizer.step()
    command = ["nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    torch.cuda.synchronize()
    return " | ".join(found.split("\n")[:2])


def unit_sizes() -> Lines:
    """Heights of a unit of the first read, and sizes of one of the second. Decides UNIT_SIZES."""
    lines, usual = [], cuda.UNIT_SIZES
    # To one program no bucket is small, so units have the height that we ask for.
    lone = dict.fromkeys(usual.programs, 1)
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
    busy, spent = kernels_of(TRAINER, OURS, "bfloat16", list_named(name))
    parts = {kind: 0.0 for kind in ("STATISTICS", "COLUMNS", "UPDATE")}
    for kernel, us in spent.items():
        if (kind := kernel.split(" ")[0]) in parts:
            parts[kind] += us
    told = ", ".join(f"{kind} {us:.1f}" for kind, us in parts.items())
    return f"{name}, {what}: busy {busy:.1f} us ({told})"


def host() -> Lines:
    """Host time of a step when nothing waits for the device. Decides what the host must save."""
    lines = []
    for rule, peers in PEERS.items():
        for name in HOST_LISTS:
            if not RULES[rule].races_on(LISTS[name]):
                continue
            for provider in (OURS, OURS_TRITON, *peers):
                step = optimizer_of(rule, provider, "bfloat16", LISTS[name]).step
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
    provider = OURS_TRITON if backend == "triton" else OURS
    optimizer = optimizer_of(TRAINER, provider, "bfloat16", chosen)
    for _ in range(2):
        optimizer.step()
    torch.cuda.synchronize()


EXPERIMENTS = {"unit_sizes": unit_sizes, "host": host, "replays": replays}


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
