"""Sizes of tiles, numbers of warps and registers, by kind of work and dtype, for all GPUs.

Those of the second read were chosen on an H200 (bench/results, 2026-11-26). The others come from
what the compilers of Triton 3.6, 3.7 and 3.9 report for sm_80, sm_90, sm_100 and gfx942: no spills,
and registers for 512 threads on a multiprocessor, except for unaligned rows, float64, COLUMN_SUMS
tiles, and aligned float32 rows of up to 2,048 columns in the first read.
Nothing is tuned at run time: kernels write in place, so they must not run twice.
"""

from __future__ import annotations

from typing import NamedTuple

from fusedstep.gpu import cut
from fusedstep.gpu.unit_sizes import Height, UnitSizes

COLUMNS_WIDTH = 64
UNIT_SIZES = UnitSizes(
    row_widths=(32, 256, 1024, 2048, 4096, 8192),
    wide_row_widths=(32, 256, 1024, 2048, 4096),
    chunk_cols=8192,
    flat_width=2048,
    column_widths=(COLUMNS_WIDTH,),
    # A bfloat16 row of 512 columns is 1 KiB: too short for the full speed of memory.
    element_widths=(32, 256, 1024),
    unit=Height(256, 256),
    # So many fit on 128 multiprocessors: an H100 has 132.
    programs={32: 256, 256: 256, 1024: 768, 2048: 384, 4096: 256, 8192: 128},
    least_elements=16384,
    update_elements=262144,
    update_programs=512,
    least_update_elements=4096,
    padded=True,
)
WHOLE_ROW = 1024  # tiles of so many columns or more: a program's threads share one row at a time
LEAST_CHUNK = UNIT_SIZES.flat_width  # narrower tiles hold whole rows
OF_ROWS = ("ROWS", "PACK_ROWS", "ROWS_EXCHANGED")


class Block(NamedTuple):
    width: int  # columns of a tile
    tile: int  # its elements
    warps: int
    # Most registers of a thread. Without a number, ptxas aims at a round one and spills a few
    # bytes to meet it. With 64, 1024 threads fit on a multiprocessor; with 128, 512.
    registers: int | None = None

    @property
    def height(self) -> int:
        return self.tile // self.width


class Chunk(NamedTuple):
    block: int  # elements on chip at a time
    chunk: int  # elements of a program
    warps: int
    tail: int = 0  # elements on chip at a time, where tiles have masks
    registers: int | None = None


class Storage(NamedTuple):
    """How the slots of a bucket are stored, as far as sizes depend on it."""

    is_usual: bool = True
    is_noisy: bool = False
    has_blocks: bool = False
    is_split: bool = False  # parameters have companions

    def registers(self, usual: int, momentum: bool, light: bool) -> int:
        """Those of an update that has `usual` ones if slots are stored as usual. From 88 to
        128, the same number of blocks of 8 warps fits on a multiprocessor."""
        if self.is_usual:
            return usual
        if not light:
            return 208  # with 152, Triton 3.9 spills
        if momentum and usual < 128:
            return 144 if self.has_blocks and self.is_split else 128
        return usual + 16 + 8 * self.has_blocks


USUAL = Storage()


def elementwise(item_bytes: int, storage: Storage = USUAL, aligned: bool = False) -> Chunk:
    """`item_bytes` is of the widest dtype. A thread has at least 16 bytes of every slot, or
    8 of a 16-bit slot beside float64, or of codes of 8 bits. Unless slots are stored as usual, a
    thread has two numbers of a tile with a mask."""
    block = 512 if item_bytes == 8 else 1024
    # Without a number, ptxas spills a few bytes of some of these.
    heavy = aligned and (item_bytes == 8 or (storage.is_noisy and not storage.has_blocks))
    return Chunk(block, 4 * block, 4, block if storage.is_usual else 256, 128 if heavy else None)


def squares(item_bytes: int) -> Chunk:
    """A thread has 16 bytes of a gradient of 16 bits on every GPU."""
    return Chunk(4096 if item_bytes == 2 else 2048, cut.GRADIENT_UNIT, 8)


def factored(
    kind: cut.Kind,
    item_bytes: int,
    aligned: bool,
    momentum: bool = False,
    storage: Storage = USUAL,
) -> Block:
    """`item_bytes` is of the compute dtype."""
    name, width = kind.name, kind.width
    light = item_bytes == 4 and (aligned or name in cut.WITHOUT_TILES)
    registers = 64 if light else 128
    if momentum and name.endswith("UPDATE"):
        registers = 80 if light and aligned else 128
    elif light and name in ("SUM_U2", "VECTOR", "VECTOR_UPDATE"):
        registers = 72  # with 64, ptxas for sm_100 spills
    if name == "UPDATE" and item_bytes == 8 and not aligned:
        registers = 160  # with 128, ptxas for sm_80 spills
    if name.endswith("UPDATE"):
        registers = storage.registers(registers, momentum, aligned or name != "UPDATE")
    elif name in ("TINY", "VECTOR"):
        registers += 8 * storage.is_split
    by_name = {
        **{name: Block(256, 256, 4, registers) for name in OF_ROWS},
        "COLUMNS": Block(COLUMNS_WIDTH, 2048, 8, 64 if item_bytes == 4 else 128),
        "TINY": Block(cut.TINY_MATRICES, 0, 8, registers),
        "TINY_UPDATE": Block(cut.TINY_MATRICES, 0, 8, registers),
        "VECTOR": Block(2048, cut.VECTOR_UNIT, 8, registers),
        "VECTOR_UPDATE": Block(2048, cut.VECTOR_UNIT, 8, registers),
        "PACK_COLUMNS": Block(COLUMNS_WIDTH, 2048, 8, 64 if item_bytes == 4 else 128),
        "COLUMNS_EXCHANGED": Block(COLUMNS_WIDTH, 2048, 8, 64 if item_bytes == 4 else 128),
        **{name: Block(1024, 0, 8, 64) for name in ("PACK_SQUARES", "TOTAL_U2")},
        **{name: Block(1024, 0, 8, 64) for name in ("FINISH", "FINISH_EXCHANGED")},
        "STORE_RMS": Block(1024, 0, 8, 64),
    }
    if name in by_name:
        return by_name[name]
    most: int | None
    if name in ("ROW_SUMS", "COLUMN_SUMS") and width < LEAST_CHUNK:  # whole rows
        most = 168 if item_bytes == 8 and name == "COLUMN_SUMS" else registers
        return Block(width, 2048, 8, most if aligned else None)
    if name in ("ROW_SUMS", "COLUMN_SUMS"):
        # One row: offsets of a second one may not fit in 32 bits.
        most = 255 if name == "COLUMN_SUMS" and width < 8192 else None
        return Block(width, width, max(4, width // 512), most)
    if name == "STATISTICS" and item_bytes == 4:
        if width < WHOLE_ROW:
            # Aligned, a thread has 32 elements.
            return Block(width, 4096, 4 if aligned else 8)
        # A thread has 16 columns of two rows. With fewer, it would take part in the sums of more
        # rows for the same number of elements. Up to 2048 columns it can also finish them: with 128
        # registers that code spills. So do two rows of 8192 columns if they are not aligned.
        rows = 1 if width == 8192 and not aligned else 2
        registers = 160 if width <= UNIT_SIZES.flat_width else 128
        return Block(width, rows * width, width // 512, registers if aligned else None)
    if name == "STATISTICS":
        return Block(width, max(width, 2048), 8)
    if name == "SUM_U2" and width == 32:
        return Block(width, 1024, 4, registers)
    if name == "SUM_U2" and item_bytes == 4 and aligned:
        return Block(width, 2048, 4, 96)  # a thread has two loads under way
    most = None if name == "SQUARES" else registers
    return Block(width, 2048 if aligned or width < 1024 else 1024, 8, most)
