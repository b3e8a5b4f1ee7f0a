"""What a kernel is compiled for: one constant, CFG, whose fields kernels read by name.

CFG is not a tuple, because Triton splits tuples into arguments. Its fields are plain numbers.
`tl.zeros` rejects them in a shape, `tl.full` takes them.

A rule's text is not a field but a separate argument, UPDATE. Triton caches compiled kernels on
disk, and notices a changed text only in an argument.
"""

from dataclasses import dataclass
from typing import Any

import triton.language as tl


@dataclass(frozen=True)
class ElementwiseConfig:
    DTYPES: tuple[tl.dtype, ...]  # of all tensors: parameter, gradient, states, companions
    CODES: tuple[int, ...]  # how the slots are stored: `fusedstep.plan.storage`
    COMPANIONS: tuple[int, ...]  # for each slot the place of its companion, or 0
    T: tl.dtype  # the compute dtype
    SCALARS: int  # how many scalars the rule takes
    ALIGNED: bool  # every address is a multiple of 16 bytes
    BLOCK: int  # elements on chip at a time
    TAIL: int  # the same, where tiles have masks
    CHUNK: int  # elements of a program


@dataclass(frozen=True)
class FactoredConfig:
    KIND: str  # of work, see `fusedstep.gpu.cut`
    DTYPES: tuple[tl.dtype, ...]  # of all tensors: parameter, gradient, states, companions
    CODES: tuple[int, ...]  # how the slots are stored: `fusedstep.plan.storage`
    COMPANIONS: tuple[int, ...]  # for each slot the place of its companion, or 0
    T: tl.dtype  # the compute dtype
    W: tl.dtype  # the dtype of long sums
    VECTOR: bool  # tensors are vectors, else matrices
    MOMENTUM: int  # the slot of the momentum, 0 if the rule has none
    SHARED: bool  # processes add up the sum of p^2, so the second read is too late for it
    ALIGNED: bool  # addresses are multiples of 16 bytes, rows of 16 elements
    WIDTH: int  # columns of a tile, or elements of a vector on chip at a time
    HEIGHT: int  # rows of a tile

    @property
    def SUM_ROWS(self) -> int:
        """The rows of the sums down the columns that a unit of the first read keeps: half of a
        tile's, if a thread has elements of both halves in the same column."""
        in_halves = self.KIND == "STATISTICS" and self.T != tl.float64 and self.HEIGHT > 1
        return self.HEIGHT // 2 if in_halves else self.HEIGHT


@dataclass(frozen=True)
class SquaresConfig:
    DTYPES: tuple[tl.dtype]  # of the gradients
    T: tl.dtype  # of squares
    W: tl.dtype  # of sums
    FIELDS: int  # of a row of the table
    BLOCK: int  # elements on chip at a time
    CHUNK: int  # elements of a program


def name_with_kind(specialized: Any) -> str:
    """A kernel's name in profiles: which work it does, on tiles of which width."""
    config = specialized.constants["CFG"]
    return f"phase_{config.KIND}_{config.WIDTH}"
