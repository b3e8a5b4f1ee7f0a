"""The options for low precision, which every optimizer takes: checked, and kept together."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

# The argument `state_dtype=` of every optimizer.
StateDtype = torch.dtype | Literal["int8"] | None


class Precision(NamedTuple):
    """How an optimizer stores its numbers.

    Attributes:
        state_dtype: of the states: a dtype, "int8", or None for the peer's.
        master_weights: whether 16-bit parameters have float32 master weights. If it is 8, the rests
            of bfloat16 parameters have 8 bits.
        stochastic_rounding: whether bfloat16 numbers are rounded by noise.
        seed: of the noise.
    """

    state_dtype: StateDtype = None
    master_weights: bool | int = False
    stochastic_rounding: bool = False
    seed: int = 0

    def rest_dtype(self, param: Tensor) -> torch.dtype | None:
        """The dtype of what a parameter has beside it: its rest, or in float16 its copy."""
        if not self.master_weights or param.dtype not in (torch.bfloat16, torch.float16):
            return None
        if param.dtype == torch.float16:
            return torch.float32
        return torch.int8 if self.master_weights == 8 else torch.int16


def checked(
    state_dtype: Any, master_weights: Any, stochastic_rounding: Any, seed: Any, optimizer: str
) -> Precision:
    """Refuses values that mean nothing. In float16 small second moments would be 0."""
    if not (state_dtype is None or state_dtype in (torch.float32, torch.bfloat16, "int8")):
        raise ValueError(
            "state_dtype should be torch.float32, torch.bfloat16, 'int8', or None for the peer's "
            f"dtypes, but is: {state_dtype!r}"
        )
    if not (isinstance(master_weights, bool) or master_weights in (8, 16)):
        raise ValueError(
            "master_weights should be False, True (exact float32 master weights), or 8 (a rest of "
            f"8 bits beside bfloat16), but is: {master_weights!r}"
        )
    if not isinstance(stochastic_rounding, bool):
        raise TypeError(
            f"stochastic_rounding should be True or False but is: {stochastic_rounding!r}"
        )
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed should be an int but is: {seed!r}")
    if stochastic_rounding and master_weights and state_dtype != torch.bfloat16:
        raise ValueError(
            f"stochastic_rounding=True and master_weights={master_weights!r} exclude each other: "
            "with a master weight a parameter loses nothing when it is rounded. Leave one of them "
            f"False. {optimizer} rounds states by noise besides master weights if "
            "state_dtype=torch.bfloat16."
        )
    return Precision(state_dtype, master_weights, stochastic_rounding, seed)
