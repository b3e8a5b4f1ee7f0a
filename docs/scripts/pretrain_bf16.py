"""Pretrains a small GPT in bfloat16, with float32 master weights in 2 more bytes a parameter.

    python docs/scripts/pretrain_bf16.py --steps 200
    python docs/scripts/pretrain_bf16.py --steps 200 --stop 100 --save half.pt
    python docs/scripts/pretrain_bf16.py --steps 200 --resume half.pt

A run that is resumed on a CPU gives the losses of one that was not interrupted, to the last bit.
On a GPU, torch's attention may add up in another order.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from tiny_gpt import TinyGPT, add_sizes, batch_of, read_bytes

from fusedstep.hf import get_cosine_schedule_with_warmup
from fusedstep.optim import AdamW, param_groups


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Trains, and returns the loss of each step."""
    given = parsed(arguments)
    torch.manual_seed(0)
    model = TinyGPT(given.width, given.layers, length=given.length)
    model = model.to(given.device, torch.bfloat16)
    optimizer = AdamW(
        param_groups(model, weight_decay=0.1),  # not for biases and normalization layers
        lr=given.lr,
        betas=(0.9, 0.95),
        max_grad_norm=1.0,
        master_weights=True,
        state_dtype=torch.bfloat16,
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, given.steps // 10, given.steps)
    first = 0
    if given.resume:
        checkpoint = torch.load(given.resume, map_location="cpu")  # loading moves what must move
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        schedule.load_state_dict(checkpoint["schedule"])
        first = checkpoint["step"]

    text, losses = read_bytes(given.text), []
    stop = given.steps if given.stop is None else given.stop
    for step in range(first, stop):
        tokens, targets = batch_of(text, step, given.rows, given.length)
        loss = model(tokens.to(given.device), targets.to(given.device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.detach())
        if step % 20 == 0:  # reading a loss waits for the device, so do it seldom
            norm, lr = float(optimizer.grad_norm), schedule.get_last_lr()[0]
            print(f"step {step:4}  loss {loss.item():.3f}  norm {norm:.2f}  next lr {lr:.2e}")

    print(*optimizer.backends(), sep="\n")
    if given.save:
        parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
        states = {name: part.state_dict() for name, part in parts.items()}
        torch.save({**states, "step": stop}, given.save)
    return [float(loss) for loss in losses]


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--text", type=Path, help="a file to learn; by default the pages of docs/")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--stop", type=int, help="stop after this step of the schedule")
    add_sizes(parser)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--resume", type=Path)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
