"""A factored step on one run of a matrix, or of a batch of matrices, with torch's operations.

The run touches some rows. At most the first and the last one are partial: `head` and `tail`; the
rows between are the `body`. Sums run in the order of `rules/layout.py` within these parts. Down a
column of a block they take the head, the body's groups, the tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..plan.bucket import Bucket
from ..plan.flat import FlatShard
from ..plan.launcher import StepInputs
from ..rules.layout import BLOCK, GROUP
from .reference_steps import FactoredStep, column_sums, round_up, row_sums, stored


class FlatStep(FactoredStep):
    """All tensors are flat, but the moments, which are those of whole rows and columns."""

    def __init__(self, bucket: Bucket, index: int, row: Sequence[Any], inputs: StepInputs) -> None:
        shard = bucket.members[index].shard
        assert isinstance(shard, FlatShard)
        self.shard = shard
        super().__init__(bucket, index, row, inputs)
        start, end = shard.start, shard.start + shard.length
        self.first, self.end = start // self.cols, -(-end // self.cols)  # the rows it touches
        self.before, self.after = start % self.cols, -end % self.cols  # what their ends lack
        if self.end - self.first == 1 and (self.before or self.after):
            self.head, self.tail = shard.length, 0  # one partial row
        else:
            self.head = self.cols - self.before if self.before else 0
            self.tail = self.cols - self.after if self.after else 0

    def _shape(self) -> Sequence[int]:
        return self.shard.whole

    def _length(self) -> int:
        return self.matrices * (self.cols + self.rows) + 1

    def _views(self) -> tuple[Tensor, Tensor, Tensor]:
        """The sums down the columns; sum p^2; the sums along the rows."""
        of_columns = self.matrices * self.cols
        s, sum_p2, along_rows = self.sums.split([of_columns, 1, self.matrices * self.rows])
        return s.view(self.matrices, self.cols), sum_p2[0], along_rows

    def _sums_of_rows(self, squares: Tensor) -> Tensor:
        """The sum of squares in each row of each matrix. It is 0 in rows that are elsewhere."""
        head, body, tail = squares.split(
            [self.head, squares.numel() - self.head - self.tail, self.tail]
        )
        parts = [head[None]] if self.head else []
        parts.append(body.view(-1, self.cols))
        parts += [tail[None]] if self.tail else []
        found = self.sums.new_zeros(self.matrices * self.rows)
        torch.cat([row_sums(part) for part in parts], out=found[self.first : self.end])
        return found

    def _whole_rows(self, run: Tensor) -> Tensor:
        """The rows that the run touches, with zeros for what is elsewhere."""
        return torch.nn.functional.pad(run, (self.before, self.after)).view(-1, self.cols)

    def _sums_of_columns(self, squares: Tensor) -> Tensor:
        """The sums down the columns of each matrix that the run touches. Zeros between the parts of
        a block give each its own groups."""
        device = squares.device
        row = torch.arange(self.first, self.end, device=device)
        first_block_row = row - row % self.rows % BLOCK
        from_part = row - first_block_row.clamp(min=self.first + (self.head > 0))
        slot = GROUP + from_part
        if self.head:
            slot[0] = 0
        if self.tail:
            slot[-1] = GROUP + _round_up_to_group(slot[-1] - GROUP)
        blocks, span = -(-self.rows // BLOCK), round_up(min(self.rows, BLOCK), GROUP) + 2 * GROUP
        matrix, matrices = row // self.rows, self._touched
        slot += ((matrix - matrices.start) * blocks + row % self.rows // BLOCK) * span
        slots = squares.new_zeros(len(matrices) * blocks * span, self.cols)
        slots[slot] = self._whole_rows(squares)
        return column_sums(slots.view(len(matrices), blocks * span, self.cols), span)

    @property
    def _touched(self) -> range:
        return range(self.first // self.rows, -(-self.end // self.rows))

    def sum_rows(self) -> None:
        squares = self.g * self.g
        s, sum_p2, along_rows = self._views()
        s.zero_()
        if self.shard.length:
            s[self._touched.start : self._touched.stop] = self._sums_of_columns(squares)
        along_rows.copy_(self._sums_of_rows(squares))
        sum_p2.copy_(self._sum_of_squares(self.p))

    def _sum_of_squares(self, x: Tensor) -> Tensor:
        return self.sum_in_pieces(self._sums_of_rows(x * x).view(self.matrices, self.rows))

    def finish(self) -> None:
        rule, dtype = self.rule, self.p.dtype
        row, col, *self.momentum = self.states
        s, _, along_rows = self._views()
        of_row = (along_rows.view(self.matrices, self.rows) / self.whole("cols")).to(dtype)
        of_col = (s / self.whole("rows")).to(dtype)
        self.row = stored(rule.second_moment(row.reshape(of_row.shape), of_row), self.dtypes[2])
        self.col = stored(rule.second_moment(col.reshape(of_col.shape), of_col), self.dtypes[3])
        mean = rule.floored_mean((row_sums(self.row)[:, None] / self.whole("rows")).to(dtype))
        touched = torch.arange(self.first, self.end, device=self.p.device) // self.rows
        row_factor = rule.row_factor(self.row, mean).flatten()[self.first : self.end]
        factor = row_factor[:, None] * rule.col_factor(self.col)[touched]
        factor = factor.flatten()[self.before : factor.numel() - self.after]
        self.u = rule.precondition(self.g, factor)
        self.of_tensor["sum_u2"].copy_(self._sum_of_squares(self.u))

    def update(self) -> None:
        moments = [self.row.reshape(self.states[0].shape), self.col.reshape(self.states[1].shape)]
        self.store_update(self._views()[1], moments, self.momentum)


def _round_up_to_group(n: Tensor) -> Tensor:
    return (n + GROUP - 1) // GROUP * GROUP
