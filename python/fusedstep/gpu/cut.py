"""Cuts the tensors of a factored rule into work, and places their sums in scratch.

A matrix is cut into units of whole rows. Rows too long for a tile are cut into chunks too; their
sums are then known one phase later. A few long rows are also cut into chunks, for parallelism. Many
tiny matrices share a unit, one matrix per thread. A vector is cut into pieces. This is plain
Python: no tensor, no Triton.

Triton and C++ use the same units of work and tables, with different `UnitSizes`.

kind           unit                        makes
ROW_SUMS       rows x chunk                sums of g^2 along the rows of a chunk
ROWS           rows of several chunks      row
STATISTICS     rows                        row; sums of g^2 and of g^2 / row down the columns
COLUMN_SUMS    rows x chunk                the sums down the columns
TINY, VECTOR   tiny matrices, a piece      all moments, sums of u^2 and p^2
SQUARES        a few rows x chunk          sum of p^2, if the step depends on it
COLUMNS        a run of columns            col, from the units' sums; its part of sum(u^2)
SUM_U2         a few rows x chunk          sum of u^2, if the cap may have changed u
FINISH         a tensor                    step size, decay, rms(p)
UPDATE, TINY_UPDATE, VECTOR_UPDATE         parameter, momentum
STORE_RMS      a tensor                    rms(p), if the step did not need it

If processes add up a bucket's sums, it has a mode, and its step has stages. The host changes two
buffers between them (`fusedstep.plan.launcher`). The table goes on with

PACK_ROWS          rows of several chunks   sums of g^2 along rows
ROWS_EXCHANGED     rows of several chunks   the results of ROWS, from the exchanged sums
PACK_COLUMNS       a run of columns         those down columns; with the first run, the sum of row
PACK_SQUARES       a tensor                 sum of p^2
COLUMNS_EXCHANGED  a run of columns         the results of COLUMNS, from the exchanged sums
TOTAL_U2           a tensor                 sum of u^2
FINISH_EXCHANGED   a tensor                 the results of FINISH and STORE_RMS, from both buffers

and the stages are, with UPDATE and the like in the last:

rows     ... SQUARES, PACK_COLUMNS, PACK_SQUARES | COLUMNS_EXCHANGED, SUM_U2, TOTAL_U2 |
         FINISH_EXCHANGED ... No unit finishes columns itself, and no matrix counts as tiny
cols     ROW_SUMS, PACK_ROWS, SQUARES, PACK_SQUARES | ROWS_EXCHANGED, COLUMN_SUMS, PACK_COLUMNS |
         then as above. All rows are in chunks, perhaps of one
pieces   ... SQUARES, PACK_SQUARES | COLUMNS, SUM_U2, TOTAL_U2 | FINISH_EXCHANGED ... There is no
         exchange after the first stage

A process may have nothing of a tensor. Then no unit reads it, the sums that it packs are zeros, and
moments that others have too change as theirs do.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields

from .unit_sizes import UnitSizes, ceil_div, holding

TINY_ELEMENTS = 64  # at most, of a matrix that one thread takes
TINY_MATRICES = 512  # in a unit
VECTOR_UNIT = 16384  # elements of a vector in a unit
CHUNK = 4096  # elements of a C++ block, for elementwise rules
GRADIENT_UNIT = 32768  # elements of a gradient in a unit of the pass that makes its norm

# Work of one phase runs in any order, after all work of the phase before.
PHASES = {
    "ROW_SUMS": 0,
    "ROWS": 1,
    "STATISTICS": 2,
    "COLUMN_SUMS": 2,
    "TINY": 2,
    "VECTOR": 2,
    "SQUARES": 2,
    "COLUMNS": 4,
    "SUM_U2": 5,
    "FINISH": 7,
    "UPDATE": 8,
    "TINY_UPDATE": 8,
    "VECTOR_UPDATE": 8,
    "STORE_RMS": 9,
}
# Only in buckets whose sums are exchanged.
EXCHANGED_PHASES = {
    "PACK_ROWS": 1,
    "ROWS_EXCHANGED": 1,
    "PACK_COLUMNS": 3,
    "PACK_SQUARES": 3,
    "COLUMNS_EXCHANGED": 4,
    "TOTAL_U2": 6,
    "FINISH_EXCHANGED": 7,
}
# The phases of each stage.
STAGES = {"read1": range(0, 4), "finish": range(4, 7), "update": range(7, 10)}
# If columns are split, these are a stage before.
SUM_ROWS = frozenset(("ROW_SUMS", "PACK_ROWS", "SQUARES", "PACK_SQUARES"))
# A kind's number in C++ is its place here.
UNITS = (*PHASES, "ELEMENTWISE", *EXCHANGED_PHASES)
# These load no tiles, so alignment does not matter.
WITHOUT_TILES = frozenset(
    ("ROWS", "TINY", "TINY_UPDATE", "COLUMNS", "FINISH", "STORE_RMS", *EXCHANGED_PHASES)
)

# These have to do with the sum of p^2. Processes add it up even if only rms(p) depends on it.
SUMS_OF_P2 = frozenset(("SQUARES", "TINY", "VECTOR", "PACK_SQUARES", "FINISH_EXCHANGED"))


@dataclass
class Cut:
    """One tensor's numbers in a table that kernels read, in this order. `*_at` are offsets in the
    scratch for sums. Only `partials_at` is an offset in the scratch for column sums,
    `col_factors_at` one from there, and `exchange_at` one in the buffer of exchanged sums."""

    unit_rows: int = 0
    row_blocks: int = 0
    chunk_cols: int = 0  # columns of a unit
    chunks: int = 0
    tiles: int = 0  # units that finish a matrix's columns
    tile_cols: int = 0  # columns of each
    update_rows: int = 0
    update_blocks: int = 0
    exchange_at: int = 0
    partials_at: int = 0
    col_factors_at: int = 0  # of columns, behind the tensor's other numbers there
    step_at: int = 0  # step size and decay
    p_at: int = 0  # sums of p^2 from the first read
    p_count: int = 0
    u_at: int = 0  # sums of u^2
    u_count: int = 0
    late_at: int = 0  # exact sums of u^2, later sums of p^2 from the second read
    late_count: int = 0
    exact_count: int = 0  # 0 if u_at already holds exact sums
    rows_at: int = 0  # sum and minimum of row, by matrix and block of rows
    least_col_at: int = 0  # minimum of col, by matrix and tile
    mean_at: int = 0  # of row, by matrix


FIELDS = tuple(field.name for field in fields(Cut))


@dataclass(frozen=True, order=True)
class Kind:
    """A kind of work, and the width of its tiles if kernels exist for several."""

    phase: int
    name: str
    width: int = 0


def kind(name: str, width: int = 0) -> Kind:
    return Kind((PHASES | EXCHANGED_PHASES)[name], name, width)


def stage_of(kind: str, mode: str) -> str:
    """The stage that a kind of work belongs to, in a bucket whose sums are exchanged."""
    if mode == "cols" and kind in SUM_ROWS:
        return "sum_rows"
    phase = (PHASES | EXCHANGED_PHASES)[kind]
    return next(stage for stage, phases in STAGES.items() if phase in phases)


def _aligned(count: int) -> int:
    """At least so many numbers, so that what follows them can be loaded in vectors."""
    return 8 * ceil_div(count, 8)


class Layout:
    """The cuts of a bucket's tensors, the work on each, and the scratch they share. `item_bytes` is
    the size of a number of the compute dtype, `elements` the size of all tensors of the bucket;
    None if there are enough for units of full height. With a `mode`, sums are exchanged: then
    `fusedstep.plan.launcher.sums_layout` gives the layout of the buffer."""

    def __init__(
        self,
        unit_sizes: UnitSizes,
        item_bytes: int,
        mode: str | None = None,
        elements: int | None = None,
    ) -> None:
        self.unit_sizes = unit_sizes
        self.elements = elements
        self.mode = mode
        self.has_whole_columns = mode in (None, "pieces")  # then units may finish them
        self.row_widths = unit_sizes.wide_row_widths if item_bytes == 8 else unit_sizes.row_widths
        self.cuts: list[Cut] = []
        self.work: list[dict[Kind, int]] = []  # per tensor: how many units of each kind
        self.partials = 0  # how many numbers of the compute dtype
        self.sums = 0  # how many float64 numbers
        self.exchange = 0  # the same

    def rows(self) -> list[tuple[int, ...]]:
        return [astuple(cut) for cut in self.cuts]

    def add_vector(self, elements: int) -> None:
        self._add_pieces("VECTOR", ceil_div(elements, VECTOR_UNIT))

    def add_matrices(self, batch: int, rows: int, cols: int, long_rows: bool = False) -> None:
        """With `long_rows`, kernels for the backend's widest tiles can read this gradient."""
        if batch > 1 and rows * cols <= TINY_ELEMENTS and self.has_whole_columns:
            exchanged = batch * (2 * cols + 1) + 1
            self._add_pieces("TINY", ceil_div(batch, TINY_MATRICES), exchanged)
        else:
            self._add_blocks(batch, rows, cols, long_rows)

    def _add_pieces(self, name: str, units: int, exchanged: int = 1) -> None:
        cut = Cut(step_at=self._take(2), p_count=units, u_count=units, late_count=units)
        cut.p_at, cut.u_at, cut.late_at = (self._take(units) for _ in range(3))
        self._add(cut, {kind(name): units, kind(f"{name}_UPDATE"): units}, 0, exchanged)

    def _add_blocks(self, batch: int, rows: int, cols: int, long_rows: bool) -> None:
        unit_sizes = self.unit_sizes
        widths = self.row_widths + (unit_sizes.long_row_widths if long_rows else ())
        chunk = holding(cols, widths)
        if cols > widths[-1]:
            chunk = min(unit_sizes.chunk_cols, widths[-1])
        if self.mode == "cols":
            chunk = min(unit_sizes.chunk_cols, chunk)
        cut = Cut(step_at=self._take(2))
        cut.unit_rows = unit_sizes.unit_rows(cols or 1, chunk, self.elements)
        if not self.has_whole_columns and 0 < rows <= cut.unit_rows:
            cut.unit_rows = ceil_div(rows, 2)  # a unit that had all rows would finish its columns
        cut.row_blocks = ceil_div(rows, cut.unit_rows)
        if not self.has_whole_columns and rows == 1:
            cut.row_blocks = 2  # the second one has no row
        flat = cut.row_blocks == 1
        if flat and cols > unit_sizes.flat_width:
            chunk = min(unit_sizes.flat_width, unit_sizes.chunk_cols, chunk)
        cut.chunk_cols = chunk
        cut.chunks = ceil_div(cols, chunk)
        cut.tile_cols = chunk if flat else unit_sizes.tile_cols(cut.row_blocks)
        cut.tiles = ceil_div(cols, cut.tile_cols)
        cut.update_rows = unit_sizes.update_rows(cols or 1, chunk, self.elements)
        cut.update_blocks = ceil_div(rows, cut.update_rows)
        units = batch * cut.row_blocks * cut.chunks
        updates = batch * cut.update_blocks * cut.chunks
        cut.p_count = cut.late_count = cut.exact_count = updates
        cut.u_count = batch * cut.tiles
        cut.p_at, cut.late_at, cut.u_at = map(self._take, (updates, updates, cut.u_count))
        cut.rows_at = self._take(2 * batch * cut.row_blocks)
        cut.least_col_at = self._take(batch * cut.tiles)
        cut.mean_at = self._take(batch)
        cut.partials_at = self.partials
        columns_need = 0 if flat else 2 * batch * cut.row_blocks * cols
        # Row sums of chunks and column sums share memory: the first are read before the second
        # are written.
        in_chunks = cut.chunks > 1 or self.mode == "cols"
        rows_need = batch * rows * cut.chunks if in_chunks else 0
        cut.col_factors_at = _aligned(max(columns_need, rows_need))
        partials = cut.col_factors_at + _aligned(batch * cols)
        work = {kind("STATISTICS", chunk): units}
        if in_chunks:
            of_rows = ["PACK_ROWS", "ROWS_EXCHANGED"] if self.mode == "cols" else ["ROWS"]
            work = {kind(name): batch * cut.row_blocks for name in of_rows}
            work[kind("ROW_SUMS", chunk)] = work[kind("COLUMN_SUMS", chunk)] = units
        if not self.has_whole_columns:
            work[kind("PACK_COLUMNS")] = work[kind("COLUMNS_EXCHANGED")] = cut.u_count
        elif not flat:
            work[kind("COLUMNS")] = cut.u_count
        for name in ("SQUARES", "SUM_U2", "UPDATE"):
            work[kind(name, holding(cols, unit_sizes.element_widths))] = updates
        exchanged = batch * (2 * cols + 1) + 1 + (batch * rows if self.mode == "cols" else 0)
        self._add(cut, work, partials, exchanged)

    def _add(self, cut: Cut, work: dict[Kind, int], partials: int, exchanged: int) -> None:
        of_tensor = ["FINISH", "STORE_RMS"]
        if self.mode is not None:
            of_tensor = ["PACK_SQUARES", "TOTAL_U2", "FINISH_EXCHANGED"]
            cut.exchange_at = self.exchange
            self.exchange += exchanged
        self.cuts.append(cut)
        work.update({kind(name): 1 for name in of_tensor})
        self.work.append({own: units for own, units in work.items() if units})
        self.partials += partials

    def _take(self, count: int) -> int:
        at = self.sums
        self.sums += count
        return at
