"""The sizes of units that a backend's kernels use, and what follows from them for a bucket.

Tall units leave fewer sums to add up. But a bucket with few elements needs low ones: a single
4096 x 4096 matrix in units of 256 rows would keep 16 of 132 multiprocessors busy. So the height of
a unit depends on the shapes of the whole bucket. It does not depend on the GPU, so that one list
gives the same bits on all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

SUMS_AT_ONCE = 4096  # that a program of COLUMNS adds up, if its tile is not the narrowest
# With so many units for each program, it does not matter much that some programs get one more.
MANY_ROUNDS = 4
ROW_STEP = 8  # the height of a low unit is a multiple of this


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def holding(columns: int, widths: tuple[int, ...]) -> int:
    """The smallest width that holds all `columns`, else the largest width."""
    return next((width for width in widths if columns <= width), widths[-1])


@dataclass(frozen=True)
class Height:
    """A unit has `rows` rows if they have `columns` columns or more. Of shorter rows it has more,
    for the same number of elements."""

    rows: int
    columns: int

    def of(self, width: int) -> int:
        return self.rows * ceil_div(self.columns, width)


@dataclass(frozen=True)
class UnitSizes:
    """The sizes that one backend's kernels use."""

    row_widths: tuple[int, ...]  # widths of tiles that hold whole rows
    wide_row_widths: tuple[int, ...]  # the same for float64
    chunk_cols: int  # at most, if no tile holds a row
    flat_width: int  # the widest tile that can hold all rows and finish its columns
    column_widths: tuple[int, ...]  # columns of a unit of COLUMNS, the most first
    element_widths: tuple[int, ...]  # widths of tiles that hold any elements
    unit: Height  # of a unit of the first read, at most
    programs: dict[int, int]  # units of the first read that run at a time, by width of tile
    least_elements: int  # in a unit of the first read: what a program loads at once
    update_elements: int  # in a unit of the second read, at most
    update_programs: int  # units of the second read that run at a time
    least_update_elements: int  # in a unit of the second read
    padded: bool  # whether a short row costs as much as a full tile
    long_row_widths: tuple[int, ...] = ()  # wider ones, for some gradients

    def unit_rows(self, cols: int, tile: int, elements: int | None) -> int:
        """How many rows a unit of the first read has, of a matrix with `cols` columns in tiles of
        `tile`. If the bucket's `elements` are few, all programs get as many units of one height;
        None means that they are many."""
        # A unit leaves two numbers per column: with 256 rows, below two percent of what it read.
        # It also leaves a few more per unit, so units of narrow matrices have more rows.
        most = self.unit.of(self._computed(cols, tile))
        if elements is None:
            return most
        width = ceil_div(cols, ceil_div(cols, tile))  # of a unit, about
        of_a_row = self.programs[tile] * width  # in a row of each program's unit
        rounds = ceil_div(elements, of_a_row * most)
        if rounds >= MANY_ROUNDS:
            return most
        wanted = max(elements // (of_a_row * rounds), self.least_elements // width)
        return min(most, ROW_STEP * max(2, ceil_div(wanted, ROW_STEP)))

    def update_rows(self, cols: int, tile: int, elements: int | None) -> int:
        """The same for the second read."""
        most = self.update_elements
        if elements is not None:
            most = min(max(elements // self.update_programs, self.least_update_elements), most)
        return max(ROW_STEP, most // self._computed(cols, tile))

    def tile_cols(self, row_blocks: int) -> int:
        """How many columns a unit of COLUMNS finishes: fewer if it adds up more sums for each."""
        widths = self.column_widths
        return next((w for w in widths if w * row_blocks <= SUMS_AT_ONCE), widths[-1])

    def _computed(self, cols: int, tile: int) -> int:
        """How many columns of a tile cost time."""
        return tile if self.padded else min(cols, tile)
