"""Trains a GPT whose bfloat16 parameters are sharded over processes by FSDP2, with a checkpoint.

    torchrun --nproc-per-node 2 docs/scripts/fsdp2.py --save checkpoint
    torchrun --nproc-per-node 4 docs/scripts/fsdp2.py --resume checkpoint --steps 120

The optimizer gets the parameters after `fully_shard`; nothing else changes. The number of processes
may change between a checkpoint and its resume.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from tiny_gpt import TinyGPT, add_sizes, batch_of, read_bytes
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from fusedstep import hf, optim


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Trains, and returns the loss of each step, averaged over the processes."""
    given = parsed(arguments)
    device = setup()
    torch.manual_seed(0)  # the same first weights in every process
    model = TinyGPT(given.width, given.layers, length=given.length).to(device, torch.bfloat16)
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    if given.optimizer == "adamw":
        optimizer = optim.AdamW(model.parameters(), lr=given.lr, master_weights=True)
    else:
        optimizer = hf.Adafactor(
            model.parameters(),
            lr=given.lr,
            scale_parameter=False,
            relative_step=False,
            master_weights=True,
        )
    first = load(given.resume, model, optimizer) if given.resume else 0

    text, losses = read_bytes(), []
    for step in range(first, given.steps):
        tokens, targets = batch_of(text, step, given.rows, given.length, dist.get_rank())
        loss = model(tokens.to(device), targets.to(device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach() / dist.get_world_size()
        dist.all_reduce(mean)
        losses.append(mean)
        if step % 20 == 0 and dist.get_rank() == 0:
            print(f"step {step:4}  loss {float(mean):.3f}")
    if given.save:
        save(given.save, model, optimizer, given.steps)
    return [float(loss) for loss in losses]


def setup() -> torch.device:
    """Joins the processes that torchrun started; each has a GPU of its own, if there are GPUs."""
    if not torch.cuda.is_available():
        dist.init_process_group("gloo")
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl")
    return torch.device("cuda", torch.cuda.current_device())


def save(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    states, moments = get_state_dict(model, optimizer)
    dcp.save({"model": states, "optimizer": moments, "step": step}, checkpoint_id=folder)


def load(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Loads each process's part. Returns the step that the run goes on with."""
    states, moments = get_state_dict(model, optimizer)
    saved = {"model": states, "optimizer": moments, "step": 0}
    dcp.load(saved, checkpoint_id=folder)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=saved["model"],
        optim_state_dict=saved["optimizer"],
    )
    return saved["step"]


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--optimizer", choices=["adamw", "adafactor"], default="adamw")
    parser.add_argument("--steps", type=int, default=60)
    add_sizes(parser, rows=8)  # of each process
    parser.add_argument("--save", type=Path)
    parser.add_argument("--resume", type=Path)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
    dist.destroy_process_group()
