"""Steps in which some tensors have no gradient: the table holds 0 for its address."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from fusedstep.gpu import tables
from fusedstep.plan.storage import COPY
from tests.support.cases import same_bits, states
from tests.support.problems import Problem


@contextmanager
def without_gradients(absent: Collection[int]) -> Iterator[None]:
    """Removes the gradients of the parameters at these positions from the table. The launches do
    not change."""
    real = tables.Tables.current

    def current(self: Any, bucket: Any, *rest: Any) -> dict[str, Any]:
        addresses = bucket.table[:, 1].clone()
        for index, position in enumerate(bucket.positions):
            if position in absent:
                bucket.table[index, 1] = 0
        bucket.table_changed = True
        found = real(self, bucket, *rest)
        bucket.table[:, 1] = addresses
        bucket.table_changed = True
        return found

    with mock.patch.object(tables.Tables, "current", current):
        yield


def check(problem: Problem, backend: str, absent: Collection[int]) -> None:
    """Tensors without a gradient are not written. The others have the same bits as always."""
    started = problem.start()
    whole, others = problem.run(backend)
    with without_gradients(absent):
        optimizer, params = problem.run(backend)
    for index, (param, other, start) in enumerate(zip(params, others, started, strict=True)):
        own = {"parameter": param.detach(), **states(optimizer, param)}
        right = {"parameter": other.detach(), **states(whole, other)}
        for name, value in own.items():
            if name == "step":
                continue
            if index not in absent:
                assert same_bits(value, right[name]), f"{name} of {index}"
            elif name == "parameter":
                assert same_bits(value, start), f"{index} was written"
            elif name == COPY:
                assert same_bits(value, start.detach().float()), f"{name} of {index} was written"
            else:
                assert not value.any(), f"{name} of {index} was written"
