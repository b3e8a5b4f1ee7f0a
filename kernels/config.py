"""What a kernel is compiled for: one constant, CFG, whose fields the kernels read by name.

It is no tuple: Triton would take one apart. A field is a plain number there, which Triton refuses
in a tuple for a function of its own language, as the shape for `tl.zeros`; `tl.full` takes it.

The text of a rule is no field but an argument of its own, UPDATE. Triton keeps what it compiled on
disk, and only of an argument does it see that the text changed.
"""

from dataclasses import dataclass

import triton.language as tl


@dataclass(frozen=True)
class ElementwiseConfig:
    DTYPES: tuple[tl.dtype, ...]  # of the slots: parameter, gradient, states
    T: tl.dtype  # computed in
    SCALARS: int  # how many the rule takes
    ALIGNED: bool  # every address is a multiple of 16 bytes
    BLOCK: int  # elements on chip at a time
    CHUNK: int  # elements of a program


@dataclass(frozen=True)
class FactoredConfig:
    KIND: str  # of work, see `fusedstep.gpu.cut`
    DTYPES: tuple[tl.dtype, ...]  # of the slots: parameter, gradient, states
    T: tl.dtype  # computed in
    W: tl.dtype  # long sums are computed in
    VECTOR: bool  # tensors are vectors, or matrices
    MOMENTUM: int  # the slot of the momentum, 0 where the rule has none
    ALIGNED: bool  # addresses are multiples of 16 bytes, rows of 16 elements
    WIDTH: int  # columns of a tile, or elements of a vector that are on chip at a time
    HEIGHT: int  # rows of a tile
