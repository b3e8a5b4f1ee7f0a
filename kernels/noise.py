"""The noise of stochastic rounding in Triton: the texts of `fusedstep.rules.noise` with uint32
numbers, and where the numbers of a tile lie in the whole tensor.

Places are counted modulo 2^32, which is what noise takes of them.
"""

import triton
import triton.language as tl

from fusedstep.rules import noise as texts
from fusedstep.rules.layout import NOISE

from .rules import bind

step_key = bind(texts.step_key)
second_key = bind(texts.second_key)
noise = bind(texts.noise)

MULTIPLIERS = tl.constexpr(texts.MULTIPLIERS)
ROW_LENGTH = tl.constexpr(len(NOISE))
# What is further away than this is outside of a tile. So 32 bits tell where runs and rows end.
LONG = tl.constexpr(2**30)


def _place(name: str) -> tl.constexpr:
    return tl.constexpr(NOISE.index(name))


KEY = _place("key")
FIRST = _place("first")
COLS = _place("cols")
ROW_STRIDE = _place("row_stride")
ROWS = _place("rows")
MATRIX_STRIDE = _place("matrix_stride")


@triton.jit
def of_tensor(rows, tensor, step, count):
    """What the noise of a tensor's step depends on: its row, how many numbers of it are here, and
    the keys."""
    row = rows + tensor * ROW_LENGTH
    key = tl.load(row + KEY)
    first_key = step_key(key.to(tl.uint32), step.to(tl.int64).to(tl.uint32))
    return row, count, first_key, second_key((key >> 32).to(tl.uint32), first_key)


@triton.jit
def places(of, start, lane):
    """Where the numbers `start + lane` of the part that is here lie in the whole tensor; None if
    there is no noise. `start` may be a number for each row of a tile. `lane` has 32 bits and is
    smaller than LONG."""
    if of is None:
        return  # `return None` does not compile before Triton 3.7
    else:
        return _places(of, start, lane)


@triton.jit
def _places(of, start, lane):
    row, count, _, _ = of
    place = (tl.load(row + FIRST) + start).to(tl.uint32) + lane.to(tl.uint32)
    cols = tl.load(row + COLS)
    if cols < count:  # several runs
        run = start // cols
        runs = ends(start - run * cols, lane, cols)
        row_gap = tl.load(row + ROW_STRIDE) - cols
        rows = tl.load(row + ROWS)
        matrix = run // rows
        matrices = ends(run - matrix * rows, runs, rows)
        matrix_gap = tl.load(row + MATRIX_STRIDE) - rows * tl.load(row + ROW_STRIDE)
        place += (run * row_gap + matrix * matrix_gap).to(tl.uint32)
        place += runs.to(tl.uint32) * row_gap.to(tl.uint32)
        place += matrices.to(tl.uint32) * matrix_gap.to(tl.uint32)
    return place


@triton.jit
def ends(at, more, length):
    """How many times a count in runs of `length` begins a new one, if it is `at` in one and goes on
    by `more`."""
    left = tl.minimum(length - at, LONG).to(tl.int32)
    over = more - left
    return tl.where(over < 0, 0, 1 + over // tl.minimum(length, LONG).to(tl.int32))


@triton.jit
def bits(of, place, SLOT: tl.constexpr):
    """16 bits of noise for the numbers of a slot."""
    _, _, first_key, second = of
    return noise(place, first_key, second, MULTIPLIERS[SLOT])
