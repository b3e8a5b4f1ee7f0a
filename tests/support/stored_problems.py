"""Steps with low-precision options, run by several backends: `Problem` with more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fusedstep.plan.storage import COPY, REST, SCALE
from fusedstep.stored_numbers import LEVELS, from_blocks, in_blocks, join
from tests.support.cases import NUMBERS, Case, Params, set_grads, states
from tests.support.problems import Problem, Run
from tests.support.stored_cases import Stored


def problem(case: Case, stored: Stored, shapes: list[tuple[int, ...]], **more: Any) -> Problem:
    """The problem of a case with low-precision options."""
    own = replace(case, only_ours={**case.only_ours, **stored.options})
    return Problem(own, shapes, (stored.dtype,), **more)


def moved(tensor: Tensor) -> Tensor:
    """A copy of a tensor whose address is no multiple of 16."""
    room = tensor.new_zeros(tensor.numel() + 1)
    return room[1:].view(tensor.shape).copy_(tensor)


def at_an_odd_address(optimizer: Any, params: Params, step: int) -> None:
    """Before the second step, moves one tensor of each parameter, a different one for each."""
    for index, param in enumerate(params if step == 1 else ()):
        state = optimizer.state[param]
        names = ["grad", *(key for key in state if key not in NUMBERS)]
        name = names[index % len(names)]
        if name == "grad":
            param.grad = moved(param.grad)
        else:
            state[name] = moved(state[name])


def numbers(run: Run, index: int) -> Iterator[tuple[str, Tensor, Tensor | float]]:
    """(name, numbers, how far the next stored number may be) for what a parameter's slots hold."""
    optimizer, params = run
    param, state = params[index].detach(), states(optimizer, params[index])
    if COPY in state:
        own, unit = state[COPY], torch.finfo(torch.float32).eps
    elif REST in state:
        own = join(param, state[REST])
        unit = 2.0**-23 if state[REST].dtype == torch.int16 else 2.0**-15
    else:
        own, unit = param, torch.finfo(param.dtype).eps
    yield "parameter", own.double(), own.double().abs() * unit
    for key, value in state.items():
        if key in (REST, COPY, *NUMBERS) or key.endswith(SCALE):
            continue
        if value.is_floating_point():
            yield key, value.double(), value.double().abs() * torch.finfo(value.dtype).eps
        else:
            # A code is about the root of a number.
            scale = state[key + SCALE].reshape(-1, 1)
            found = from_blocks(in_blocks(value), scale).view(value.shape).double()
            gap = (2.2 / LEVELS[value.dtype] * scale.double()).expand(-1, 128)
            yield key, found, gap.reshape(value.shape)


def assert_near_as_stored(found: Run, reference: Run, steps: int) -> None:
    """Sums have another order than the reference's, so numbers differ by a few units of float32. In
    fewer bits a few of them are then stored as the next number, once for each step."""
    for index, param in enumerate(found[1]):
        if not param.numel():
            continue
        pairs = zip(numbers(found, index), numbers(reference, index), strict=True)
        for (name, own, _), (_, right, gap) in pairs:
            where = f"{name} of {index} {tuple(param.shape)}"
            assert own.isnan().equal(right.isnan()), where
            own, right = own.nan_to_num(), right.nan_to_num()
            if name != "parameter":  # earlier it may have been as large as any
                gap = gap.max()
            few = 64 * torch.finfo(torch.float32).eps * right.abs().max()
            error = (own - right).abs()
            assert (error <= steps * gap + few).all(), f"{where}: {error.max()}"
            others = (error > few).sum().item()
            assert others <= 1 + own.numel() // 50, f"{where}: {others} numbers differ"


def any_bits(count: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Numbers of any bits: nan, infinities, zeros, the largest and the smallest among them."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(2**31), 2**31, (count,), generator=generator).to(torch.int32)
    some = torch.randint(0, 8, (count,), generator=generator)
    special = torch.tensor(
        [0x7F7FFFFF, 0x7F7F0001, 0x7F7EFFFF, 1, 0x007FFFFF, 0, 0x3F800000, 0x3F80FFFF]
    ).to(torch.int32)
    bits = torch.where(bits % 3 == 0, special[some], bits)
    return bits.view(torch.float32).to(dtype)


def strange_gradients(optimizer: Any, params: Params, step: int) -> None:
    """Some blocks of 128 numbers have only finite gradients, and some only zeros."""
    set_grads(params, step)
    for index, param in enumerate(params):
        own = any_bits(param.numel(), 17 * step + index, param.dtype)
        block = torch.arange(param.numel()) // 128 % 4
        usual = param.grad.reshape(-1)
        own = torch.where(block == 0, usual, torch.where(block == 1, torch.zeros(()), own))
        param.grad = own.to(param.dtype).view(param.shape)
