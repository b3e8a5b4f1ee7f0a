"""Constants that backends share: the order of sums, dtype codes, kinds of work, table layouts.

The order of every sum is fixed, so a result does not depend on how the work was cut. Sums run along
the rows or down the columns of a matrix; a vector is one row. All sizes depend only on a tensor's
shape, never on the number of threads.

along a row    tiles of TILE columns; in a tile LANES lanes, lane k takes columns k, k + LANES and
               so on in order; the lanes are folded; tile sums are added in float64, in order
down a column  blocks of BLOCK rows; in a block groups of GROUP rows, folded, then added in order;
               block sums are added in float64, in order
fold           x[k] + x[k + n/2] until one is left

A thread takes up to CPU_RUN elements at a time: a whole tensor, several small matrices, or a part
of a vector. A larger matrix is cut into its blocks. A tensor's pieces are added in float64, in
order.
"""

from __future__ import annotations

LANES = 16
TILE = 1024
GROUP = 8
BLOCK = 256
CPU_RUN = 65536

# How the numbers of a slot are stored, by code: in a dtype, or as `plan/storage.py` tells. For each
# code the bytes of a number, and of what its companion has for a number or for a block of numbers.
FLOAT32, BFLOAT16, FLOAT16, FLOAT64 = range(4)
NOISY_BFLOAT16, REST16, REST8, COPIED_FLOAT16, BENT_INT8, BENT_UINT8 = range(4, 10)
ITEM_BYTES = (4, 2, 2, 8, 2, 2, 2, 2, 1, 1)
COMPANION_BYTES = (0, 0, 0, 0, 0, 2, 1, 4, 4, 4)
SCALED_BLOCK = 128  # numbers with one scale

# What noise needs to know of a tensor (`rules/noise.py`): its key; the place of its first number in
# the whole tensor; how its numbers lie there: runs of `cols`, `row_stride` apart, and after each
# `rows` runs the next matrix.
NOISE = ("key", "first", "cols", "row_stride", "rows", "matrix_stride")

# Kinds of work in the CPU's work list. Rules without sums use only UPDATE. The last line is for
# exchanged buckets.
WHOLE, STATISTICS, COLUMNS, SUM_U2, STEP_SIZE, UPDATE, STORE_RMS = range(7)
PACK_COLUMNS, PACK_TENSOR, TOTAL_U2, SUM_ROWS, ROW_MOMENTS = range(7, 12)

# A tensor's row of a bucket's table: the addresses of its slots, then its sizes. A rule's own
# states start at the last slot. `rms` is the address of rms(p), or 0.
SLOTS = {
    "elementwise": ("p", "g", "states"),
    "matrix": ("p", "g", "row", "col", "momentum"),
    "vector": ("p", "g", "v", "momentum"),
}
SIZES = {
    "elementwise": ("elements",),
    "matrix": ("rms", "batch", "rows", "cols"),
    "vector": ("rms", "elements"),
}
