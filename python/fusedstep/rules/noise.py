"""The noise of stochastic rounding: 16 bits for each number, the same in every backend.

A bfloat16 number is the high half of a float32. To round, noise is added to the low half before it
is cut off: so x goes up with the probability that its low half has of all 2^16, and the mean of
many roundings is x. The noise depends on the seed, the number of the parameter in the optimizer,
the step, the slot, and the place in the whole tensor: on nothing that a backend, a cut, a thread or
a number of processes could change.

Texts take Python ints, int64 tensors, or uint32 numbers of a kernel; for these the masks do
nothing. `csrc/noise.h` has the same in C++.
"""

from __future__ import annotations

import hashlib
from typing import Any

# The last factor of the noise of each slot. Slot 1, the gradient, is not stored.
MULTIPLIERS = (0x846CA68B, 0, 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F)


def tensor_key(seed: int, number: int) -> int:
    """64 bits, as a signed int, for a parameter by its number in the optimizer."""
    digest = hashlib.blake2b(f"{seed} {number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def mixed(x: Any) -> Any:
    """A bijection of 32 bits in which every bit depends on every bit."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def step_key(low: Any, step: Any) -> Any:
    """The first key of a tensor's step, from the low half of the tensor's key."""
    return mixed((low + step * 0x9E3779B9) & 0xFFFFFFFF)


def second_key(high: Any, first: Any) -> Any:
    """The second key, from the high half and the first key."""
    return mixed(high ^ first)


def noise(place: Any, first: Any, second: Any, multiplier: Any) -> Any:
    """16 bits for the number at `place`, of which the low 32 bits count."""
    x = (place * 0x9E3779B1 + first) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = x ^ (x >> 15) ^ second
    return (((x * multiplier) & 0xFFFFFFFF) >> 16) ^ 0x7FFF
