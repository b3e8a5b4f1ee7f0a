"""A few steps of every kind of work on small tensors, for compute-sanitizer. Sizes are ragged and
some addresses are misaligned. Other tests look at the values."""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

import fusedstep.hf
import fusedstep.optim
from bench.optimizers import TRAINER

# One tile and several, rows that are longer than a tile of each backend, tiny matrices, one piece
# and several.
SHAPES = [
    *((), (7,), (5000,), (17001,), (33, 17), (300, 160), (600, 3, 3), (3, 9001), (2, 40, 304)),
    *((40, 5000), (20, 8200), (64, 256), (48, 512)),
]


@dataclass(frozen=True)
class Run:
    dtype: torch.dtype
    misaligned: bool = False


MISALIGNED = Run(torch.float32, misaligned=True)
PLAIN, HALF = Run(torch.float32), Run(torch.bfloat16)

# One rule walks memory in every way. The others only add arithmetic or a state to the same walks.
# A few ways are enough for them, because Triton has to compile kernels for each.
Make = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
CASES: dict[str, tuple[Make, list[Run]]] = {
    "AdamW": (lambda p: fusedstep.optim.AdamW(p), [MISALIGNED, PLAIN, HALF]),
    "AdamW, amsgrad": (lambda p: fusedstep.optim.AdamW(p, amsgrad=True), [MISALIGNED]),
    "Adafactor": (lambda p: fusedstep.optim.Adafactor(p), [MISALIGNED, PLAIN, HALF]),
    "Adafactor, capped": (lambda p: fusedstep.optim.Adafactor(p, eps=(0.1, 1e-2)), [HALF, PLAIN]),
    "transformers' Adafactor, Trainer's settings": (
        lambda p: fusedstep.hf.Adafactor(p, **TRAINER),
        [PLAIN],
    ),
    "transformers' Adafactor, momentum": (lambda p: fusedstep.hf.Adafactor(p, beta1=0.9), [PLAIN]),
}


def parameters(device: str, dtype: torch.dtype, misaligned: bool) -> list[torch.nn.Parameter]:
    noise = torch.Generator(device).manual_seed(0)

    def random(shape: tuple[int, ...]) -> torch.Tensor:
        skipped = int(misaligned)
        count = torch.Size(shape).numel()
        flat = torch.randn(count + skipped, generator=noise, dtype=dtype, device=device)
        return flat[skipped:].view(shape)

    params = [torch.nn.Parameter(random(shape)) for shape in SHAPES]
    for param, shape in zip(params, SHAPES, strict=True):
        param.grad = random(shape)
    return params


def main() -> int:
    parser = argparse.ArgumentParser("python -m bench.small_step", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", default="auto")
    asked = parser.parse_args()
    device, os.environ["FUSEDSTEP_BACKEND"] = asked.device, asked.backend
    for name, (make, runs) in CASES.items():
        for run in runs:
            params = parameters(device, run.dtype, run.misaligned)
            optimizer = make(params)
            for _ in range(2):
                optimizer.step()
            if not all(bool(param.isfinite().all()) for param in params):
                print(f"{name}, {run}: a parameter is not finite")
                return 1
        print(f"{name}: done", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
