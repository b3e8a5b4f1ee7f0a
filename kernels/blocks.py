"""Sizes of tiles and numbers of warps, by kind of work, dtype and architecture.

None of these was measured on a GPU yet: they were chosen from what the compiler reports for sm_80,
sm_90, sm_100 and gfx942 (no spills; registers that leave room for at least 512 threads on a
multiprocessor) and from the bytes that must be on their way to keep memory busy. A kernel that
writes in place must not be tuned by running it again, so nothing here is found at run time.
"""

from __future__ import annotations

from typing import NamedTuple

from . import cut

WAVE_WARPS = 8


class Block(NamedTuple):
    width: int  # columns of a tile
    tile: int  # its elements
    warps: int


class Chunk(NamedTuple):
    block: int  # elements that are on chip at a time
    chunk: int  # elements of a program
    warps: int


def elementwise(item_bytes: int) -> Chunk:
    """For the widest of a bucket's dtypes. A thread has at least 16 bytes of every slot."""
    return Chunk(512, 2048, 4) if item_bytes == 8 else Chunk(1024, 4096, 4)


def factored(kind: cut.Kind, item_bytes: int, aligned: bool) -> Block:
    """For numbers of `item_bytes` that are computed with."""
    name, width = kind.name, kind.width
    by_name = {
        "ROWS": Block(256, 256, 4),
        "COLUMNS": Block(cut.COLUMNS_WIDTH, 2048, 8),
        "TINY": Block(cut.TINY_MATRICES, 0, 8),
        "TINY_UPDATE": Block(cut.TINY_MATRICES, 0, 8),
        "VECTOR": Block(2048, cut.PIECE, 8),
        "VECTOR_UPDATE": Block(2048, cut.PIECE, 8),
        "FINISH": Block(1024, 0, 8),
        "REPORT": Block(1024, 0, 8),
    }
    if name in by_name:
        return by_name[name]
    if name in ("ROW_SUMS", "WIDE"):  # one row: its columns may be too many for 32 bits
        return Block(width, width, max(4, width // 512))
    if name == "STATISTICS":
        tile = 2048 if item_bytes == 8 else 4096
        return Block(width, max(width, tile), 16 if width == 8192 else 8)
    if name == "ENERGY" and width == 32:
        return Block(width, 1024, 4)
    return Block(width, 2048 if aligned or width < 512 else 1024, 8)
