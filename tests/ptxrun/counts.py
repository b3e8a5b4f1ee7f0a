"""Counting and reversing the bits of a word."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .decode import WORD, Action, Decoder, instruction

Array = NDArray[Any]


def reverse(a: Array) -> Array:
    count = a.dtype.itemsize
    flat = np.unpackbits(a.view(np.uint8).reshape(-1, count), axis=1)
    return np.packbits(flat.reshape(-1, count * 8)[:, ::-1], axis=1).view(a.dtype).reshape(-1)


def leading_zeros(a: Array) -> Array:
    count = a.dtype.itemsize
    flat = np.unpackbits(a.view(np.uint8).reshape(-1, count)[:, ::-1], axis=1)
    first = flat.argmax(axis=1)
    return np.where(a == 0, count * 8, first).astype(np.uint32)


@instruction("popc", "clz", "brev")
def count_bits(d: Decoder) -> Action:
    type_ = d.type()
    d.finish(2)
    if type_.name not in ("b32", "b64"):
        raise d.unknown()
    source = d.source(1, type_)
    if d.opcode == "brev":
        target = d.target(0, type_.bits)
        return d.bitwise(
            reverse, lambda _, u: reverse(u[0]), target, type_.bits, (source,), (type_,)
        )
    function = leading_zeros
    if d.opcode == "popc":
        function = lambda a: np.bitwise_count(a).astype(np.uint32)  # noqa: E731
    return d.elementwise(function, d.target(0, 32), 32, (source,), (type_,))


@instruction("bfind")
def find_leading(d: Decoder) -> Action:
    shift_amount, type_ = d.take("shiftamt") is not None, d.type()
    d.finish(2)
    if type_.bits not in (32, 64) or type_.name[0] == "b":
        raise d.unknown()
    top = np.uint32(type_.bits - 1)

    def function(a: Array) -> Array:
        word = np.where(a < 0, ~a, a).view(WORD[type_.bits])
        zeros = leading_zeros(word)
        found = zeros if shift_amount else top - zeros
        return np.where(word == 0, np.uint32(0xFFFFFFFF), found)

    return d.elementwise(function, d.target(0, 32), 32, (d.source(1, type_),), (type_,))
