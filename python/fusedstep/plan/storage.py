"""How the numbers of a slot are stored: in the dtype of its tensor, or otherwise.

A slot may have a second tensor, its companion. That is one more state of the parameter:

    slot                      companion
    bfloat16 parameter        `master_rest`, int16: both together are a float32 (REST16)
                              `master_rest`, int8: both together are a float32 of 24 bits (REST8)
    float16 parameter         `master`, float32: the parameter is this, rounded (COPIED_FLOAT16)
    int8 state `KEY`          `KEY_scale`, float32: the largest number of each block, of which
                              codes are parts (BENT_INT8: see `stored_numbers.py`)
    uint8 state `KEY`         the same, for numbers of 0 or more (BENT_UINT8)

A bfloat16 slot without a companion may be rounded by noise (NOISY_BFLOAT16). Only slots as large as
the parameter are stored in these ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..rules import layout

REST, COPY, SCALE = "master_rest", "master", "_scale"

DTYPE_CODES = {
    torch.float32: layout.FLOAT32,
    torch.bfloat16: layout.BFLOAT16,
    torch.float16: layout.FLOAT16,
    torch.float64: layout.FLOAT64,
    torch.int8: layout.BENT_INT8,
    torch.uint8: layout.BENT_UINT8,
}
RESTS = {torch.int16: layout.REST16, torch.int8: layout.REST8}


class Storage(NamedTuple):
    """How the slots of a rule are stored: parameter, gradient and states."""

    codes: tuple[int, ...]  # see `rules/layout.py`
    companions: tuple[int, ...]  # for each slot the place of its companion, or 0

    @property
    def is_usual(self) -> bool:
        """Whether every number is stored in the dtype of its tensor."""
        return max(self.codes) < layout.NOISY_BFLOAT16


NO_SLOTS = Storage((), ())


def storage_of(
    keys: Sequence[str], dtypes: Sequence[torch.dtype], is_noisy: bool, small: Sequence[int] = ()
) -> Storage:
    """The storage of a member's slots.

    Arguments:
        keys: of its states, companions last.
        dtypes: of parameter, gradient and states.
        is_noisy: whether bfloat16 numbers are rounded by noise.
        small: the slots of factored moments, which are smaller than the parameter.
    """
    slots = ("", "", *keys)
    owners = {REST: 0, COPY: 0, **{key + SCALE: slot for slot, key in enumerate(slots) if slot > 1}}
    places = {owners[key]: place for place, key in enumerate(slots) if key in owners}
    count = len(slots) - len(places)
    codes = [DTYPE_CODES[dtype] for dtype in dtypes[:count]]
    if 0 in places:
        codes[0] = RESTS.get(dtypes[places[0]], layout.COPIED_FLOAT16)
    for slot, code in enumerate(codes):
        is_written_large = slot != 1 and slot not in small
        if is_noisy and code == layout.BFLOAT16 and is_written_large:
            codes[slot] = layout.NOISY_BFLOAT16
    return Storage(tuple(codes), tuple(places.get(slot, 0) for slot in range(count)))
