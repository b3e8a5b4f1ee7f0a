"""Steps in which some tensors have no gradient: the table holds 0 for its address."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from fusedstep.gpu import tables
from tests.support.cases import NUMBERS, Case, Params, same_bits, states
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


def first_states(case: Case, params: Params) -> list[dict[str, Tensor]]:
    """Each parameter's states before the first step."""
    if case.name == "accumulate":
        return [{"sum": torch.zeros_like(param)} for param in params]
    optimizer = case.make(params, backend="reference")
    optimizer._make_missing_states()
    return [states(optimizer, param) for param in params]


def check(problem: Problem, backend: str, absent: Collection[int]) -> None:
    """Tensors without a gradient are not written. The others have the same bits as always."""
    started = problem.start()
    whole, others = problem.run(backend)
    with without_gradients(absent):
        optimizer, params = problem.run(backend)
    first = first_states(problem.case, started)
    for index, (param, other, start) in enumerate(zip(params, others, started, strict=True)):
        own = {"parameter": param.detach(), **states(optimizer, param)}
        right = {"parameter": other.detach(), **states(whole, other)}
        for name, value in own.items():
            if name in NUMBERS:
                continue
            if index not in absent:
                assert same_bits(value, right[name]), f"{name} of {index}"
            elif name == "parameter":
                assert same_bits(value, start), f"{index} was written"
            else:
                assert same_bits(value, first[index][name]), f"{name} of {index} was written"
