"""Finds tensors that share memory, which one step cannot update correctly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

# The address of a tensor's first byte, the address after its last byte, its place in the list.
Span = tuple[int, int, int]


class Memory(NamedTuple):
    """The memory of a step's tensors.

    Attributes:
        starts: their addresses; 0 if a tensor has none.
        extents: bytes from the first element to the end of the last one.
        n_written: a step writes this many of them, the first ones. It only reads the others, which
            may share memory with each other.
        tensors: a function that returns the tensors. It is seldom called.
    """

    starts: list[int]
    extents: list[int]
    n_written: int
    tensors: Callable[[], list[Tensor]]


def find_shared(memory: Memory) -> tuple[int, int] | None:
    """The places of two tensors that share memory, in order, or None.

    It sorts the tensors by address, and is done if no two ranges of memory overlap, as for
    consecutive parts of one buffer. Tensors whose ranges do overlap are compared byte by byte,
    unless they are columns of one matrix.
    """
    spans = [
        (start, start + extent, place)
        for place, (start, extent) in enumerate(zip(memory.starts, memory.extents, strict=True))
        if start and extent
    ]
    spans.sort()
    if all(span[1] <= after[0] for span, after in pairwise(spans)):
        return None
    tensors, n_written = memory.tensors(), memory.n_written
    for group in _overlapping(spans):
        if all(place >= n_written for _, _, place in group) or _are_columns(tensors, group):
            continue
        found = _dense_overlap(tensors, group, n_written) or _compare(tensors, group, n_written)
        if found is not None:
            return min(found), max(found)
    return None


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether two elements have the same address, as in an expanded tensor."""
    if tensor.is_contiguous() or tensor.numel() < 2:
        return False
    reach = 1  # elements from the first to the last one, in the dimensions seen so far
    for stride, size in _dimensions(tensor):
        if stride < reach:
            break
        reach += (size - 1) * stride
    else:
        return False
    if stride == 0:
        return True
    marks = torch.zeros(_extent(tensor), dtype=torch.bool, device="cpu")
    marks.as_strided(tensor.shape, tensor.stride()).fill_(True)
    return int(marks.sum()) < tensor.numel()


def _dimensions(tensor: Tensor) -> list[tuple[int, int]]:
    """(stride, size) of the dimensions larger than 1, the smallest stride first."""
    pairs = zip(tensor.stride(), tensor.shape, strict=True)
    return sorted((stride, size) for stride, size in pairs if size > 1)


def _extent(tensor: Tensor) -> int:
    """The number of elements from the first to the last one, both and all gaps included."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum((size - 1) * stride for stride, size in _dimensions(tensor))


def _overlapping(spans: list[Span]) -> list[list[Span]]:
    """Groups of two or more tensors whose ranges of memory overlap."""
    groups: list[list[Span]] = []
    reach = 0
    for span in spans:
        if span[0] >= reach:
            groups.append([])
        groups[-1].append(span)
        reach = max(reach, span[1])
    return [group for group in groups if len(group) > 1]


def _are_columns(tensors: Sequence[Tensor], group: list[Span]) -> bool:
    """Whether they are disjoint columns of one matrix, as parts of a fused projection are."""
    rows = []  # for each tensor: the bytes between the starts of two rows, the number of rows
    for _, _, place in group:
        stride, size = (_dimensions(tensors[place]) or [(0, 1)])[-1]
        rows.append((stride * tensors[place].itemsize, size))
    line = max(rows)[0]
    if line == 0:
        return False
    columns = []
    for (start, end, _), (stride, count) in zip(group, rows, strict=True):
        width = end - start - ((count - 1) * stride if stride == line else 0)
        first = (start - group[0][0]) % line
        columns.append((first, first + width))
    columns = [*sorted(columns), (line, line)]
    return all(column[1] <= after[0] for column, after in pairwise(columns))


def _dense_overlap(
    tensors: Sequence[Tensor], group: list[Span], n_written: int
) -> tuple[int, int] | None:
    """Two tensors without gaps whose ranges overlap, one of them written, or None."""
    farthest = farthest_written = (0, 0, 0)
    for span in group:
        start, end, place = span
        if end - start != tensors[place].nbytes or overlaps_itself(tensors[place]):
            continue
        if start < farthest_written[1]:
            return farthest_written[2], place
        if place < n_written:
            if start < farthest[1]:
                return farthest[2], place
            farthest_written = max(farthest_written, span, key=_end)
        farthest = max(farthest, span, key=_end)
    return None


def _end(span: Span) -> int:
    return span[1]


def _compare(
    tensors: Sequence[Tensor], group: list[Span], n_written: int
) -> tuple[int, int] | None:
    """Marks the bytes of one tensor after the other in a map of their memory, until one hits a
    mark. Returns the two tensors, or None."""
    origin = group[0][0]
    places = sorted(place for _, _, place in group)
    sizes = (tensors[place].itemsize for place in places)
    unit = math.gcd(*sizes, *(start - origin for start, _, _ in group))  # bytes for each mark
    length = (max(map(_end, group)) - origin) // unit
    marks = torch.zeros(length, dtype=torch.bool, device="cpu")

    def marks_of(place: int) -> Tensor:
        tensor = tensors[place]
        each = tensor.itemsize // unit
        strides = (*(stride * each for stride in tensor.stride()), 1)
        return marks.as_strided(
            (*tensor.shape, each), strides, (tensor.data_ptr() - origin) // unit
        )

    for index, place in enumerate(places):
        part = marks_of(place)
        if part.any():
            for other in places[:index]:
                marks.zero_()
                marks_of(other).fill_(True)
                if other < n_written and part.any():
                    return other, place
        if place < n_written:
            part.fill_(True)
    return None
