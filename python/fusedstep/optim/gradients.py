"""Steps that write gradients: makes them writable, unscales them, clips them by their norms."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..plan import devices
from ..plan.staging import real

Kinds = list[list[Tensor]]

# Elements. The host adds up squares in float64, and copies a long gradient in parts of this size.
NORM_SPLIT = 1 << 18


def writable(params: Iterable[Tensor]) -> Kinds:
    """The gradients by device and dtype. One that parameters share is there once. A complex one is
    a tensor of pairs. A gradient that cannot be written in place is replaced by a copy."""
    copies: dict[int, tuple[Tensor, Tensor]] = {}  # keeps the replaced ones, so that ids last
    kinds: dict[tuple[torch.device, torch.dtype], dict[int, Tensor]] = {}
    for param in params:
        grad = param.grad
        assert grad is not None
        if grad.numel() == 0:
            continue
        if _is_read_only(grad):
            if id(grad) not in copies:
                copies[id(grad)] = (
                    grad,
                    torch.empty(grad.shape, dtype=grad.dtype, device=grad.device).copy_(grad),
                )
            grad = param.grad = copies[id(grad)][1]
        kinds.setdefault((grad.device, grad.dtype), {})[id(grad)] = real(grad)
    return [list(grads.values()) for grads in kinds.values()]


def multiply(kinds: Kinds, factor: Tensor) -> None:
    """g = factor g for all. The factor is rounded to the gradient's dtype, as in torch."""
    for grads in kinds:
        torch._foreach_mul_(grads, devices.to_device(factor, grads[0].device, grads[0].dtype))


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
    multiply(writable(params), factor)


def clip_each(kinds: Kinds, limit: float) -> None:
    """g = g limit / max(norm(g), limit) for each gradient, with no host sync."""
    for grads in kinds:
        factors = _factors(_norms(grads), limit)
        torch._foreach_mul_(grads, list(factors.to(grads[0].dtype).unbind()))


def clip_together(kinds: Kinds, limit: float) -> None:
    """g = g limit / max(norm, limit), where norm is that of all gradients as one vector. The host
    waits only if they are on several devices."""
    if not kinds:
        return
    home = kinds[0][0].device
    norms = [devices.to_device(_norms(grads), home, devices.widest_float(home)) for grads in kinds]
    multiply(kinds, _factors(torch.linalg.vector_norm(torch.cat(norms)), limit))


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
