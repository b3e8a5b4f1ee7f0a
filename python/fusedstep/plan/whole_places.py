"""Where the numbers of a part lie in the whole tensor: noise depends on it."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from . import flat, shards


def places_of(param: Tensor) -> tuple[int, int, int, int, int] | str:
    """The last numbers of NOISE (`rules/layout.py`): where the first number here lies in the whole
    tensor, then runs of `cols` numbers, `row_stride` apart, and after each `rows` runs the next
    matrix, `matrix_stride` apart. A string says why this cannot be told."""
    piece = flat.piece_of(param)
    own = shards.local(param)
    count = max(1, own.numel())
    if piece is not None:
        return piece.start, count, count, 1, count
    if not shards.is_dtensor(param):
        return 0, count, count, 1, count
    return _places(list(own.shape), own.stride(), param.stride(), _offsets(param))


def _places(
    sizes: list[int], strides: tuple[int, ...], steps: tuple[int, ...], offsets: list[int]
) -> tuple[int, int, int, int, int] | str:
    """The same, from the strides of the part and of the whole."""
    # Noise counts numbers in the order of memory.
    order = sorted((dim for dim in range(len(sizes)) if sizes[dim] > 1), key=lambda dim: steps[dim])
    if order != sorted(order, key=lambda dim: strides[dim]):
        return "its numbers lie in another order than those of the whole"
    first = sum(offset * step for offset, step in zip(offsets, steps, strict=True))
    levels: list[tuple[int, int]] = []  # (numbers here, how far apart in the whole), the last first
    for dim in order:
        step = steps[dim]
        if levels and step == math.prod(levels[-1]):
            levels[-1] = levels[-1][0] * sizes[dim], levels[-1][1]
        else:
            levels.append((sizes[dim], step))
    levels = levels or [(1, 1)]
    if levels[0][1] != 1:
        levels.insert(0, (1, 1))
    if len(levels) > 3:
        return "it is split along too many dimensions"
    (cols, _), (rows, row_stride), (_, matrix_stride) = levels + [(1, 1)] * (3 - len(levels))
    return first, cols, row_stride, rows, matrix_stride


def _offsets(param: Any) -> list[int]:
    """Where the part of a DTensor begins in each dimension. A strided shard (FSDP2 over tensor
    parallelism) is a part of what later dimensions of the mesh have cut."""
    sizes, offsets = list(param.shape), [0] * param.dim()
    shares = [(k, own) for k, own in enumerate(param.placements) if not own.is_replicate()]
    strided = [share for share in shares if hasattr(share[1], "split_factor")]
    for k, placement in [share for share in shares if share not in strided] + strided[::-1]:
        dim = placement.dim % param.dim()
        share = -(-sizes[dim] // param.device_mesh.size(k))
        start = min(sizes[dim], share * param.device_mesh.get_local_rank(k))
        offsets[dim] += start
        sizes[dim] = min(share, sizes[dim] - start)
    if sizes != list(shards.local(param).shape):
        raise RuntimeError(
            f"the part of a parameter with placements {param.placements} has shape "
            f"{tuple(shards.local(param).shape)}, expected {tuple(sizes)}"
        )
    return offsets
