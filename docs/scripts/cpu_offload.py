"""Trains with the optimizer on the CPU: the device holds a bfloat16 model, and no states.

    python docs/scripts/cpu_offload.py --steps 100

The CPU has a bfloat16 copy of the parameters, the rests that make them float32 master weights, and
the moments. Backward sends each gradient to the CPU as soon as it is there, and frees it on the
device. The CPU step updates all parameters, and their bfloat16 values go back: 2 bytes a parameter
in each direction.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from tiny_gpt import TinyGPT, add_sizes, batch_of, read_bytes
from torch import Tensor, nn

from fusedstep.optim import AdamW


class Offloaded:
    """The parameters of a model and their optimizer, on the CPU. A step takes the gradients of one
    backward; parameters that got none are left alone."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        self.params = [param for param in model.parameters() if param.requires_grad]
        self.on_gpu = self.params[0].is_cuda
        self.hosts = [nn.Parameter(self.host_copy(param.detach())) for param in self.params]
        for param, host in zip(self.params, self.hosts, strict=True):
            room = self.host_copy(torch.zeros_like(host))
            param.register_post_accumulate_grad_hook(self.sends_to(host, room))
        self.optimizer = AdamW(self.hosts, lr=lr, master_weights=True, backend="cpu")

    def host_copy(self, tensor: Tensor) -> Tensor:
        """A copy in pinned memory, to and from which a GPU copies beside its work."""
        copy = torch.empty_like(tensor, device="cpu", pin_memory=self.on_gpu)
        return copy.copy_(tensor)

    def sends_to(self, host: nn.Parameter, room: Tensor):
        def send(param: Tensor) -> None:
            host.grad = room.copy_(param.grad, non_blocking=True)
            param.grad = None  # the allocator keeps its memory until the copy is over

        return send

    def step(self) -> None:
        if self.on_gpu:
            torch.cuda.current_stream().synchronize()  # the gradients are here
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for param, host in zip(self.params, self.hosts, strict=True):
                param.copy_(host, non_blocking=True)


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Trains, and returns the loss of each step."""
    given = parsed(arguments)
    torch.manual_seed(0)
    model = TinyGPT(given.width, given.layers, length=given.length)
    model = model.to(given.device, torch.bfloat16)
    offloaded = Offloaded(model, given.lr)
    text, losses = read_bytes(), []
    for step in range(given.steps):
        tokens, targets = batch_of(text, step, given.rows, given.length)
        loss = model(tokens.to(given.device), targets.to(given.device))
        loss.backward()
        offloaded.step()
        losses.append(loss.detach())
        if step % 20 == 0:
            print(f"step {step:4}  loss {loss.item():.3f}")
    print(*offloaded.optimizer.backends(), sep="\n")
    return [float(loss) for loss in losses]


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100)
    add_sizes(parser)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
