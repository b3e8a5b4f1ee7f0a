"""The plain torch backend, for every kind of device: the rule texts themselves, run on tensors.

It is slow and it is the measure: sums run in the order of `rules/layout.py`, so on a CPU every
other backend's result is compared with this one bit for bit. Nothing is read back to the host.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import steps
from .operations import bind
from .plan import Bucket
from .rules.layout import BLOCK, GROUP, LANES, PIECE, TILE
from .steps import moved, wide

name = "reference"


def why_absent() -> str:
    return ""


def devices() -> tuple[str, ...]:
    return ("cpu", "cuda", "xpu", "mps")


def about() -> str:
    return f"plain torch {torch.__version__}, on {', '.join(devices())}"


def prepare(bucket: Bucket) -> None:
    bucket.backend_data = None


def scratch_bytes(bucket: Bucket) -> int:
    return 0


def launch(
    bucket: Bucket, scalars: Tensor, inv_grad_scale: Tensor | None, found_inf: Tensor | None
) -> None:
    """Carries out one step of the bucket; nothing is written where `found_inf` is not zero."""
    # On a device a scalar stays a tensor: its number is not known here.
    rows = (
        scalars.tolist() if steps.on_host(scalars) else [row.unbind() for row in scalars.unbind()]
    )
    step_one = {"elementwise": _elementwise, "matrix": _matrix, "vector": _vector}[bucket.kind]
    for index, row in enumerate(bucket.row_of.tolist()):
        sign, *values = rows[row]
        rule = bind(bucket.rule, values)
        tensors = bucket.tensors(index)
        compute = bucket.compute_dtype
        numbers = [t.to(compute) for t in tensors]
        # The sign goes into the scale: one multiplication, and one rounding, as in every walker.
        if isinstance(sign, Tensor):
            sign = sign.to(compute)
        scale = sign
        if inv_grad_scale is not None:
            scale = moved(inv_grad_scale, bucket.device, compute) * sign
        if inv_grad_scale is not None or isinstance(sign, Tensor) or sign != 1.0:
            numbers[1] = numbers[1] * scale
        results, rms = step_one(rule, numbers, [t.dtype for t in tensors])
        written = [tensors[0], *tensors[2:]]
        if bucket.rms is not None:
            written, results = [*written, bucket.rms[index]], [*results, rms.to(compute)]
        for old, new in zip(written, results, strict=True):
            new = new.to(old.dtype)
            if found_inf is not None:
                new = torch.where(moved(found_inf, old.device) != 0, old, new)
            old.copy_(new)


Results = tuple[list[Tensor], Tensor]


def _elementwise(rule: Any, numbers: list[Tensor], dtypes: list[torch.dtype]) -> Results:
    return list(rule.update(*numbers)), numbers[0].new_zeros(())


def _matrix(rule: Any, numbers: list[Tensor], dtypes: list[torch.dtype]) -> Results:
    p, g, row_state, col_state, *momentum = numbers
    rows, cols = p.shape[-2:]
    x = g.reshape(-1, rows, cols)
    square = x * x
    row = row_state.reshape(-1, rows)
    col = col_state.reshape(-1, cols)
    blocked = rows * cols > PIECE

    row = _stored(rule.second_moment(row, (row_sums(square) / cols).to(p.dtype)), dtypes[2])
    col = _stored(rule.second_moment(col, (column_sums(square) / rows).to(p.dtype)), dtypes[3])
    mean = rule.floored_mean((row_sums(row) / rows).to(p.dtype))[:, None]

    h = column_sums(square * rule.inverse(row)[..., None]).to(p.dtype)
    energy = row_sums(rule.col_energy(h, col, mean))
    row_factor, col_factor = rule.row_factor(row, mean), rule.col_factor(col)
    u = rule.precondition(x, row_factor[..., None] * col_factor[:, None, :])
    capped = rule.is_capped(_least(row), _least(col), mean)
    exact = in_order(in_order(row_sums(u * u), BLOCK))
    energy = torch.where(capped[:, 0], exact, energy)

    per_piece = 1 if blocked else max(1, PIECE // (rows * cols))
    sum_u = in_order(in_order(energy, per_piece))
    p_rows = row_sums((p * p).reshape(-1, rows, cols))
    # The rows of a piece: of a block of a large matrix, or of all the small matrices in it.
    in_piece = in_order(p_rows, BLOCK) if blocked else in_order(p_rows.flatten(), per_piece * rows)
    sum_p = in_order(in_piece.flatten())
    results, rms = _finish(rule, p, u.reshape(p.shape), momentum, sum_p, sum_u)
    new_states = [row.reshape(row_state.shape), col.reshape(col_state.shape)]
    return [results[0], *new_states, *results[1:]], rms


def _vector(rule: Any, numbers: list[Tensor], dtypes: list[torch.dtype]) -> Results:
    p, g, v, *momentum = numbers
    v = _stored(rule.second_moment(v, g * g), dtypes[2])
    u = rule.precondition(g, rule.col_factor(v))
    sum_p, sum_u = (in_order(row_sums(_cut(x * x, PIECE))) for x in (p.flatten(), u.flatten()))
    results, rms = _finish(rule, p, u, momentum, sum_p, sum_u)
    return [results[0], v, *results[1:]], rms


def _finish(
    rule: Any, p: Tensor, u: Tensor, momentum: list[Tensor], sum_p: Tensor, sum_u: Tensor
) -> tuple[list[Tensor], Tensor]:
    count = torch.full_like(sum_u, p.numel())
    rms = rule.rms(sum_p, count)
    step_size, decay = rule.finish(rms, rule.rms(sum_u, count))
    step_size, decay = step_size.to(p.dtype), decay.to(p.dtype)
    return list(rule.update(p, *momentum, u, step_size, decay)), rms


def _stored(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).to(x.dtype)


def _least(x: Tensor) -> Tensor:
    return x.masked_fill(x.isnan(), torch.inf).amin(-1, keepdim=True)


# The order of sums.


def row_sums(x: Tensor) -> Tensor:
    """Sums over the last dimension, in float64: tile by tile, lane by lane."""
    length = TILE if x.shape[-1] > TILE else LANES
    tiles = _cut(x, length if length == TILE else _round_up(x.shape[-1], LANES))
    terms = tiles.unflatten(-1, (-1, LANES))
    lanes = terms[..., 0, :]
    for k in range(1, terms.shape[-2]):
        lanes = lanes + terms[..., k, :]
    return in_order(fold(lanes, -1).to(wide(x.device)))


def column_sums(x: Tensor) -> Tensor:
    """Sums over the last dimension but one, in float64: block by block, group by group."""
    columns = x.transpose(-1, -2)
    rows = x.shape[-2]
    blocks = _cut(columns, BLOCK if rows > BLOCK else _round_up(rows, GROUP))
    groups = fold(blocks.unflatten(-1, (-1, GROUP)), -1)
    block = groups[..., 0]
    for k in range(1, groups.shape[-1]):
        block = block + groups[..., k]
    return in_order(block.to(wide(x.device)))


def fold(x: Tensor, dim: int) -> Tensor:
    while (half := x.shape[dim] // 2) > 0:
        x = x.narrow(dim, 0, half) + x.narrow(dim, half, half)
    return x.squeeze(dim)


def in_order(x: Tensor, length: int | None = None) -> Tensor:
    """Adds up the last dimension from front to back: all of it, or every `length` of it. On a CPU
    cumsum adds one after the other; elsewhere the order of these float64 sums is the device's."""
    if length is not None:
        x = _cut(x, length)
    return x.cumsum(-1)[..., -1]


def _cut(x: Tensor, length: int) -> Tensor:
    """The last dimension as pieces of `length`, the last piece filled up with zeros."""
    short = -x.shape[-1] % length
    return torch.nn.functional.pad(x, (0, short)).unflatten(-1, (-1, length))


def _round_up(n: int, step: int) -> int:
    return -(-n // step) * step
