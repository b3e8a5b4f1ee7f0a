"""The steps of the plain torch backend: the rule texts on one tensor, stage by stage. Sums run in
the order of `rules/layout.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..operations import bind
from ..plan import devices
from ..plan.bucket import Bucket
from ..plan.launcher import OF_TENSOR, StepInputs
from ..rules.layout import BLOCK, CPU_RUN, GROUP, LANES, TILE
from .reference_storage import slots_of


class OneStep:
    """One tensor's step: its old values, and the results of each stage. If others hold parts of the
    tensor, `sums` and `of_tensor` are views of the launcher's buffers."""

    sums: Tensor  # in the layout of `sums_layout`
    of_tensor: dict[str, Tensor]  # see OF_TENSOR

    def __init__(self, bucket: Bucket, index: int, row: Sequence[Any], inputs: StepInputs) -> None:
        self.index = index
        _, inv_grad_scale, self.found_inf = inputs[:3]
        sign, *values, self.step_number = row
        self.rule = bind(bucket.rule, values)
        compute = bucket.compute_dtype
        slots = slots_of(bucket, index, bucket.tensors(index))
        self.dtypes = [slot.tensor.dtype for slot in slots]
        self.written = [slots[0], *slots[2:]]
        self.rms = None if bucket.rms is None else bucket.rms[index]
        self.p, g, *self.states = (slot.numbers().to(compute) for slot in slots)
        # Scale and sign are one factor, so g is multiplied and rounded once, as in every walker.
        if isinstance(sign, Tensor):
            sign = sign.to(compute)
        scale = sign
        if inv_grad_scale is not None:
            scale = devices.to_device(inv_grad_scale, bucket.device, compute) * sign
        if inv_grad_scale is not None or isinstance(sign, Tensor) or sign != 1.0:
            g = g * scale
        self.g = g

    def sum_rows(self) -> None: ...

    def read1(self) -> None: ...

    def finish(self) -> None: ...

    def update(self) -> None: ...

    def store(self, results: Sequence[Tensor], rms: Tensor | None = None) -> None:
        """Writes parameter and states, and rms(p) if the bucket keeps it."""
        written = [
            pair
            for slot, numbers in zip(self.written, results, strict=True)
            for pair in slot.stored(numbers, self.step_number)
        ]
        if self.rms is not None and rms is not None:
            written.append((self.rms, rms.to(self.rms.dtype)))
        for old, new in written:
            if self.found_inf is not None:
                found = devices.to_device(self.found_inf, old.device) != 0
                new = torch.where(found, old, new)
            old.copy_(new)


class ElementwiseStep(OneStep):
    """A rule without sums: one stage does all."""

    def update(self) -> None:
        self.store(self.rule.update(self.p, self.g, *self.states))


class FactoredStep(OneStep):
    """What matrices and vectors share: the step size from the sums, the update from u."""

    u: Tensor

    def __init__(self, bucket: Bucket, index: int, row: Sequence[Any], inputs: StepInputs) -> None:
        super().__init__(bucket, index, row, inputs)
        *batch, rows, cols = self._shape()
        self.matrices, self.rows, self.cols = torch.Size(batch).numel(), rows, cols
        self.sums = self.p.new_zeros(self._length(), dtype=devices.widest_float(self.p.device))
        sizes = map(float, (0, rows, cols, self.p.numel(), 0, 0, 0))
        self.of_tensor = {
            name: self.sums.new_full((), size) for name, size in zip(OF_TENSOR, sizes, strict=True)
        }

    def _shape(self) -> Sequence[int]:
        return self.p.shape if self.p.dim() > 1 else (1, 1)

    def _length(self) -> int:
        return 1

    def whole(self, name: str) -> Tensor:
        """A size of the whole matrix or tensor."""
        return self.of_tensor[name]

    def sum_in_pieces(self, of_rows: Tensor) -> Tensor:
        """Sums a number for each row of each matrix. A piece is a block of rows of a large matrix,
        or several small matrices."""
        length = self._per_piece() * self.rows
        in_piece = (
            in_order(of_rows, BLOCK) if self._blocked() else in_order(of_rows.flatten(), length)
        )
        return in_order(in_piece.flatten())

    def _blocked(self) -> bool:
        return self.rows * self.cols > CPU_RUN

    def _per_piece(self) -> int:
        """How many matrices a piece has."""
        area = self.rows * self.cols
        return 1 if self._blocked() or area == 0 else max(1, CPU_RUN // area)

    def store_update(self, sum_p2: Tensor, moments: list[Tensor], momentum: list[Tensor]) -> None:
        rule, count = self.rule, self.whole("elements")
        rms = rule.rms(sum_p2, count)
        step_size, decay = rule.finish(rms, rule.rms(self.of_tensor["sum_u2"], count))
        step_size, decay = step_size.to(self.p.dtype), decay.to(self.p.dtype)
        p, *momentum = rule.update(self.p, *momentum, self.u, step_size, decay)
        self.store([p, *moments, *momentum], rms)


class MatrixStep(FactoredStep):
    """The last two dimensions are a matrix; the dimensions before them are a batch."""

    def _length(self) -> int:
        return self.matrices * (2 * self.cols + 1 + self.rows) + 1

    def _views(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """s, h and the sum of the row moments of each matrix; sum p^2; the sums along the rows."""
        in_columns = self.matrices * (2 * self.cols + 1)
        of_matrices = self.sums[:in_columns].view(self.matrices, 2 * self.cols + 1)
        s, h, sum_row = of_matrices.split([self.cols, self.cols, 1], dim=1)
        return s, h, sum_row, self.sums[in_columns], self.sums[in_columns + 1 :]

    def sum_rows(self) -> None:
        self.x = self.g.reshape(self.matrices, self.rows, self.cols)
        self.square = self.x * self.x
        _, _, _, sum_p2, along_rows = self._views()
        self.row_sums = row_sums(self.square)
        if along_rows.numel():
            self.row_sums = along_rows.view(self.matrices, self.rows).copy_(self.row_sums)
        sum_p2.copy_(self._sum_p2())

    def read1(self) -> None:
        rule, dtype = self.rule, self.p.dtype
        row_state, _, *self.momentum = self.states
        row = row_state.reshape(self.matrices, self.rows)
        mean_square = (self.row_sums / self.whole("cols")).to(dtype)
        self.row = stored(rule.second_moment(row, mean_square), self.dtypes[2])
        self.own_h = column_sums(self.square * rule.inverse(self.row)[..., None])
        s, h, sum_row, _, _ = self._views()
        s.copy_(column_sums(self.square))
        h.copy_(self.own_h)
        sum_row.copy_(row_sums(self.row)[:, None])

    def _sum_p2(self) -> Tensor:
        p_rows = row_sums((self.p * self.p).reshape(self.matrices, self.rows, self.cols))
        return self.sum_in_pieces(p_rows)

    def finish(self) -> None:
        rule, dtype = self.rule, self.p.dtype
        s, h, sum_row, _, _ = self._views()
        col = self.states[1].reshape(self.matrices, self.cols)
        mean_square = (s / self.whole("rows")).to(dtype)
        self.col = stored(rule.second_moment(col, mean_square), self.dtypes[3])
        mean = rule.floored_mean((sum_row / self.whole("rows")).to(dtype))
        # If a cap may change u, sum u^2 is only of the rows here.
        h = torch.where(self.of_tensor["capped"] != 0, self.own_h, h)
        sum_u2 = row_sums(rule.col_sum_u2(h.to(dtype), self.col, mean))
        row_factor, col_factor = rule.row_factor(self.row, mean), rule.col_factor(self.col)
        u = rule.precondition(self.x, row_factor[..., None] * col_factor[:, None, :])
        capped = rule.is_capped(_least(self.row), _least(self.col), mean)
        exact = in_order(in_order(row_sums(u * u), BLOCK))
        sum_u2 = torch.where(capped[:, 0], exact, sum_u2)
        if self.rows == 0:  # of no rows it is 0, even if a column is all zeros: no 0 / 0
            sum_u2 = torch.where(self.of_tensor["capped"] != 0, 0.0, sum_u2)
        self.of_tensor["sum_u2"].copy_(in_order(in_order(sum_u2, self._per_piece())))
        self.u = u.reshape(self.p.shape)

    def update(self) -> None:
        moments = [self.row.reshape(self.states[0].shape), self.col.reshape(self.states[1].shape)]
        self.store_update(self._views()[3], moments, self.momentum)


class VectorStep(FactoredStep):
    """A vector keeps an unfactored second moment."""

    def read1(self) -> None:
        rule = self.rule
        v, *self.momentum = self.states
        self.v = stored(rule.second_moment(v, self.g * self.g), self.dtypes[2])
        self.u = rule.precondition(self.g, rule.col_factor(self.v))
        self.sums[0].copy_(_sum_of_squares(self.p))

    def finish(self) -> None:
        self.of_tensor["sum_u2"].copy_(_sum_of_squares(self.u))

    def update(self) -> None:
        self.store_update(self.sums[0], [self.v], self.momentum)


KINDS: dict[str, type[OneStep]] = {
    "elementwise": ElementwiseStep,
    "matrix": MatrixStep,
    "vector": VectorStep,
}


def _sum_of_squares(x: Tensor) -> Tensor:
    return in_order(square_sums(x.flatten()))


def square_sums(x: Tensor) -> Tensor:
    """Sums of squares of a vector, in pieces of CPU_RUN numbers."""
    return row_sums(_cut(x * x, CPU_RUN))


def stored(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).to(x.dtype)


def _least(x: Tensor) -> Tensor:
    numbers = x.masked_fill(x.isnan(), torch.inf)
    # A process may have no rows.
    return torch.nn.functional.pad(numbers, (0, 1), value=torch.inf).amin(-1, keepdim=True)


def row_sums(x: Tensor) -> Tensor:
    """Sums over the last dimension, in float64: tile by tile, lane by lane."""
    length = TILE if x.shape[-1] > TILE else LANES
    tiles = _cut(x, length if length == TILE else round_up(x.shape[-1], LANES))
    terms = tiles.unflatten(-1, (-1, LANES))
    lanes = terms[..., 0, :]
    for k in range(1, terms.shape[-2]):
        lanes = lanes + terms[..., k, :]
    return in_order(fold(lanes, -1).to(devices.widest_float(x.device)))


def column_sums(x: Tensor, block_rows: int = BLOCK) -> Tensor:
    """Sums over the second to last dimension, in float64: block by block, group by group."""
    columns = x.transpose(-1, -2)
    rows = x.shape[-2]
    blocks = _cut(columns, block_rows if rows > block_rows else round_up(rows, GROUP))
    groups = fold(blocks.unflatten(-1, (-1, GROUP)), -1)
    block = groups[..., 0]
    for k in range(1, groups.shape[-1]):
        block = block + groups[..., k]
    return in_order(block.to(devices.widest_float(x.device)))


def fold(x: Tensor, dim: int) -> Tensor:
    while (half := x.shape[dim] // 2) > 0:
        x = x.narrow(dim, 0, half) + x.narrow(dim, half, half)
    return x.squeeze(dim)


def in_order(x: Tensor, length: int | None = None) -> Tensor:
    """Sums the last dimension from front to back: all of it, or each `length` of it. On a CPU
    cumsum adds one number at a time; a GPU may add these float64 numbers in another order."""
    if length is not None:
        x = _cut(x, max(1, length))
    return x.cumsum(-1)[..., -1] if x.shape[-1] else x.new_zeros(x.shape[:-1])


def _cut(x: Tensor, length: int) -> Tensor:
    """Splits the last dimension into pieces of `length`; zeros fill up the last piece, which may
    have nothing else."""
    short = -x.shape[-1] % length if x.shape[-1] else length
    return torch.nn.functional.pad(x, (0, short)).unflatten(-1, (-1, length))


def round_up(n: int, step: int) -> int:
    return max(1, -(-n // step)) * step
