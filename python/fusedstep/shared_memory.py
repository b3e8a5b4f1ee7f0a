"""Finds tensors that share memory: one step could not update them rightly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

# The first byte of a tensor, the end of its last one, and its place in the caller's list.
Span = tuple[int, int, int]


def find_shared(tensors: Sequence[Tensor], n_written: int) -> tuple[int, int] | None:
    """The places of two tensors that share memory, in order, or None. A step writes the first
    `n_written` and only reads the others, which may share memory among themselves.

    It costs a sort by address. Parts of one buffer that follow one another cost no more. Those that
    lie between each other's elements are compared byte by byte, unless they are columns.
    """
    spans = sorted(_spans(tensors))
    if all(span[1] <= after[0] for span, after in pairwise(spans)):
        return None
    for group in _that_meet(spans):
        if all(place >= n_written for _, _, place in group) or _are_columns(tensors, group):
            continue
        found = _meet_densely(tensors, group, n_written) or _compare(tensors, group, n_written)
        if found is not None:
            return min(found), max(found)
    return None


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether two elements lie at one address, as in an expanded tensor."""
    if tensor.is_contiguous() or tensor.numel() < 2:
        return False
    reach = 1  # elements from the first to the last one of the dimensions seen so far
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


def _spans(tensors: Sequence[Tensor]) -> list[Span]:
    spans = []
    for place, tensor in enumerate(tensors):
        start = tensor.data_ptr()
        size = tensor.nbytes if tensor.is_contiguous() else _extent(tensor) * tensor.itemsize
        if start and size:  # it is neither empty nor on meta
            spans.append((start, start + size, place))
    return spans


def _dimensions(tensor: Tensor) -> list[tuple[int, int]]:
    """Stride and size of those that matter, the smallest stride first."""
    pairs = zip(tensor.stride(), tensor.shape, strict=True)
    return sorted((stride, size) for stride, size in pairs if size > 1)


def _extent(tensor: Tensor) -> int:
    """How many elements lie between its first and its last one, gaps included."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum((size - 1) * stride for stride, size in _dimensions(tensor))


def _that_meet(spans: list[Span]) -> list[list[Span]]:
    """Groups of two and more whose ranges of memory meet."""
    groups: list[list[Span]] = []
    reach = 0
    for span in spans:
        if span[0] >= reach:
            groups.append([])
        groups[-1].append(span)
        reach = max(reach, span[1])
    return [group for group in groups if len(group) > 1]


def _are_columns(tensors: Sequence[Tensor], group: list[Span]) -> bool:
    """Whether they are columns of one matrix, side by side, as parts of a fused projection are."""
    rows = []  # of each tensor how many bytes its rows are apart, and how many there are
    for _, _, place in group:
        stride, size = (_dimensions(tensors[place]) or [(0, 1)])[-1]
        rows.append((stride * tensors[place].itemsize, size))
    line = max(rows)[0]
    if line == 0:
        return False
    columns = []
    for (start, end, _), (apart, count) in zip(group, rows, strict=True):
        width = end - start - ((count - 1) * apart if apart == line else 0)
        first = (start - group[0][0]) % line
        columns.append((first, first + width))
    columns = [*sorted(columns), (line, line)]
    return all(column[1] <= after[0] for column, after in pairwise(columns))


def _meet_densely(
    tensors: Sequence[Tensor], group: list[Span], n_written: int
) -> tuple[int, int] | None:
    """Two tensors without gaps whose ranges meet."""
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
    """Marks the bytes of one tensor after the other in a map of their memory, until one meets a
    mark."""
    origin = group[0][0]
    places = sorted(place for _, _, place in group)
    sizes = (tensors[place].itemsize for place in places)
    unit = math.gcd(*sizes, *(start - origin for start, _, _ in group))  # bytes that a mark is for
    length = (max(map(_end, group)) - origin) // unit
    marks = torch.zeros(length, dtype=torch.bool, device="cpu")

    def own_part(place: int) -> Tensor:
        tensor = tensors[place]
        each = tensor.itemsize // unit
        strides = (*(stride * each for stride in tensor.stride()), 1)
        return marks.as_strided(
            (*tensor.shape, each), strides, (tensor.data_ptr() - origin) // unit
        )

    for index, place in enumerate(places):
        part = own_part(place)
        if part.any():
            for other in places[:index]:
                marks.zero_()
                own_part(other).fill_(True)
                if other < n_written and part.any():
                    return other, place
        if place < n_written:
            part.fill_(True)
    return None
