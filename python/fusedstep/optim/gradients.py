"""Steps that write gradients: makes them writable, unscales them, clips them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..plan import devices, shards
from ..plan.staging import real


class Gradients(NamedTuple):
    """Gradients that a step writes, by device and dtype, and the parameter of each."""

    kinds: list[list[Tensor]]
    owners: list[list[Tensor]]


# Elements. The host adds up squares in float64, and copies a long gradient in parts of this size.
NORM_SPLIT = 1 << 18


def writable(params: Iterable[Tensor]) -> Gradients:
    """The gradients of `params`. One that parameters share is there once. A complex one is a tensor
    of pairs, a DTensor its local tensor. A gradient that cannot be written in place is replaced by
    a copy. Empty ones are left out."""
    copies: dict[int, tuple[Tensor, Tensor]] = {}  # keeps the replaced ones, so that ids last
    found: dict[tuple[torch.device, torch.dtype], dict[int, tuple[Tensor, Tensor]]] = {}
    for param in params:
        grad = param.grad
        assert grad is not None
        if shards.local(grad).numel() == 0:
            continue
        if _is_read_only(shards.local(grad)):
            if id(grad) not in copies:
                copies[id(grad)] = grad, _dense_copy(grad)
            grad = param.grad = copies[id(grad)][1]
        of_kind = found.setdefault((grad.device, grad.dtype), {})
        of_kind[id(grad)] = real(shards.local(grad)), param
    pairs = [list(zip(*of_kind.values(), strict=True)) for of_kind in found.values()]
    return Gradients([list(grads) for grads, _ in pairs], [list(own) for _, own in pairs])


def _dense_copy(grad: Tensor) -> Tensor:
    if shards.is_dtensor(grad):
        return grad.clone(memory_format=torch.contiguous_format)
    return torch.empty(grad.shape, dtype=grad.dtype, device=grad.device).copy_(grad)


def multiply(kinds: list[list[Tensor]], factor: Tensor) -> None:
    """g = factor g for all. The factor is rounded to the gradient's dtype, as in torch."""
    for grads in kinds:
        torch._foreach_mul_(grads, devices.to_device(factor, grads[0].device, grads[0].dtype))


def clip_values(kinds: list[list[Tensor]], limit: float) -> None:
    """g = min(max(g, -limit), limit) for each number. A nan stays."""
    for grads in kinds:
        torch._foreach_clamp_min_(grads, -limit)
        torch._foreach_clamp_max_(grads, limit)


def inverse(grad_scale: Tensor) -> Tensor:
    """1 / grad_scale, in float64 where the device has it."""
    return grad_scale.to(devices.widest_float(grad_scale.device)).reciprocal()


def unscale(params: Iterable[Tensor], inv_grad_scale: Tensor, found_inf: Tensor | None) -> None:
    """Writes the unscaled gradients, as torch's fused optimizers do. After an infinity the factor
    is 1."""
    factor = inv_grad_scale
    if found_inf is not None:
        found = devices.to_device(found_inf, factor.device) != 0
        factor = torch.where(found, torch.ones_like(factor), factor)
    multiply(writable(params).kinds, factor)


class Norms:
    """Norms of whole gradients, of which other processes may hold parts. `params` are the same in
    all processes, with gradients or without, so that all send the same messages."""

    def __init__(self, params: Iterable[Tensor]) -> None:
        sharded = [(p, own) for p in params if (own := shards.shard_of(p, False)) is not None]
        self.place_of = {id(param): k for k, (param, _) in enumerate(sharded)}
        self.places: dict[shards.Processes, list[int]] = {}
        for k, (_, own) in enumerate(sharded):
            for split in own.splits:
                self.places.setdefault(split.processes, []).append(k)

    def clip_each(self, gradients: Gradients, limit: float) -> None:
        """g = g limit / max(norm(g), limit) for each gradient, with no host sync."""
        norms, squares = self._norms(gradients)
        for grads, owners, own in zip(*gradients, norms, strict=True):
            for index, owner in enumerate(owners if self.place_of else ()):
                if id(owner) in self.place_of:
                    own[index] = squares[self.place_of[id(owner)]].sqrt()
            torch._foreach_mul_(grads, list(_factors(own, limit).to(grads[0].dtype).unbind()))

    def clip_together(self, gradients: Gradients, limit: float) -> None:
        """g = g limit / max(norm, limit), where norm is that of all gradients as one vector. The
        host waits only if they are on several devices."""
        norms, squares = self._norms(gradients)
        whole = (
            [
                own[index]
                for owners, own in zip(gradients.owners, norms, strict=True)
                for index, owner in enumerate(owners)
                if id(owner) not in self.place_of
            ]
            if self.place_of
            else norms
        )
        home = squares.device
        parts = [devices.to_device(own, home, squares.dtype).reshape(-1) for own in whole]
        norm = torch.linalg.vector_norm(torch.cat([*parts, squares.sqrt()]))
        multiply(gradients.kinds, _factors(norm, limit))

    def _norms(self, gradients: Gradients) -> tuple[list[Tensor], Tensor]:
        """The norms of what is here, and the squared norms of all sharded gradients."""
        norms = [_norms(grads) for grads in gradients.kinds]
        home = norms[0].device if norms else torch.device("cpu")
        squares = torch.zeros(len(self.place_of), dtype=devices.widest_float(home), device=home)
        for owners, own in zip(gradients.owners, norms, strict=True):
            for index, owner in enumerate(owners if self.place_of else ()):
                if id(owner) in self.place_of:
                    squares[self.place_of[id(owner)]] = own[index].square()
        for processes in sorted(self.places, key=lambda processes: processes.order):
            places = self.places[processes]
            total = squares[places].to(processes.device_for(home))
            processes.add_up(total)()
            squares[places] = total.to(home)
        return norms, squares


def _is_read_only(grad: Tensor) -> bool:
    """Whether elements share memory (an expanded tensor), or are negated only when read."""
    shared = any(
        size > 1 and stride == 0 for size, stride in zip(grad.shape, grad.stride(), strict=True)
    )
    return shared or grad.is_conj() or grad.is_neg()


def _factors(norms: Tensor, limit: float) -> Tensor:
    # torch computes number / tensor as number * (1 / tensor), rounded twice: not 1 where norm and
    # limit are equal.
    limits = torch.full_like(norms, limit)
    return limits / torch.maximum(norms, limits)


def _norms(grads: list[Tensor]) -> Tensor:
    """The 2-norm of each gradient, in float64 where the device has it. torch's float32 norm of 40M
    numbers is off by 3e-3 (AMD EPYC, 2026-11-21)."""
    dtype = devices.widest_float(grads[0].device)
    if not devices.on_host(grads[0]):
        return torch.stack(torch._foreach_norm(grads, 2.0, dtype))
    pieces = [
        grad.reshape(-1).split(NORM_SPLIT) if grad.numel() > NORM_SPLIT else (grad,)
        for grad in grads
    ]
    norms = torch.stack(torch._foreach_norm([piece for own in pieces for piece in own], 2.0, dtype))
    owners = torch.tensor([k for k, own in enumerate(pieces) for _ in own], device="cpu")
    return norms.new_zeros(len(grads)).index_add_(0, owners, norms.square()).sqrt_()
