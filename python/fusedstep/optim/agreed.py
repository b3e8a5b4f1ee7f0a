"""What processes that share parameters must agree on before a step: whether it changes anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..plan import devices, shards
from ..plan.layouts import FLOATS

Parameters = Callable[[], Iterable[tuple[object, object, Tensor]]]  # (where, group, parameter)


def in_any_process(found: Tensor, parameters: Parameters) -> Tensor:
    """`found`, not 0 if it is so in any process that holds a part of a parameter. A GradScaler
    looks at what is here, and an infinity may be elsewhere."""
    splits = [own.splits for _, _, p in parameters() if (own := shards.shard_of(p, False))]
    processes = {split.processes for own in splits for split in own}
    found = shards.local(found)
    if not processes:
        return found
    total = (found != 0).to(torch.float32).reshape(1)
    for group in sorted(processes, key=lambda group: group.order):
        message = total.to(group.device_for(total.device))
        group.add_up(message)()
        total = devices.to_device(message, total.device)
    return total.reshape(())


def in_no_process(found: Tensor, parameters: Parameters) -> Tensor:
    """1 if `found` is 0 in all these processes, else 0."""
    return (in_any_process(found, parameters) == 0).to(torch.float32)


def any_gradient(groups: list[dict[str, Any]]) -> Tensor:
    """1 if any gradient here may have a number other than 0, as a tensor. What cannot be read
    counts as such a number: the checks refuse it later."""
    found: list[Tensor] = []
    for group in groups:
        for param in group["params"]:
            grad = None if param.grad is None else shards.local(param.grad)
            if grad is None:
                continue
            if not _is_readable(grad):
                return torch.ones((), device="cpu")
            if grad.numel():
                found.append((grad != 0).any())
    if not found:
        return torch.zeros((), device="cpu")
    home = found[0].device
    return torch.stack([devices.to_device(own, home) for own in found]).any().to(torch.float32)


def _is_readable(grad: Tensor) -> bool:
    return (
        type(grad) is Tensor
        and not devices.is_faking()
        and not grad.is_nested
        and grad.layout == torch.strided
        and grad.device.type != "meta"
        and (grad.is_complex() or grad.dtype in FLOATS)
        and (grad.numel() == 0 or grad.data_ptr() != 0)
    )


def is_zero(lr: Any) -> bool:
    """Whether a learning rate is 0. One on a device is not read."""
    if isinstance(lr, Tensor):
        return devices.on_host(lr) and lr.numel() == 1 and bool(lr == 0)
    return isinstance(lr, float | int) and lr == 0
