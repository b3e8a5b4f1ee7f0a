"""Draws the pictures of docs/how-it-works.md: `python docs/pictures.py` writes docs/pictures."""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent / "pictures"

# What a box is: its fill and its line.
TEXT, MEMORY, WORK, OTHER = (
    ("#fff6dd", "#c9a227"),
    ("#e6f0fa", "#4a7fb5"),
    ("#e8f5e9", "#4c9a57"),
    ("#f3f3f3", "#999999"),
)
HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}" '
    'font-family="sans-serif" font-size="14" fill="#222">\n'
    '<defs><marker id="end" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">'
    '<path d="M0,0 L9,4 L0,8 z" fill="#555"/></marker></defs>\n'
    '<rect width="{w}" height="{h}" fill="#ffffff"/>\n'
)
LINE = 19  # from one line of text to the next


class Picture:
    """Boxes and arrows, in pixels from the upper left corner."""

    def __init__(self, width: int, height: int) -> None:
        self._parts = [HEAD.format(w=width, h=height)]

    def words(self, x: int, y: int, text: str, style: str = "", anchor: str = "middle") -> None:
        self._parts.append(
            f'<text x="{x}" y="{y}" text-anchor="{anchor}"{style}>{escape(text)}</text>\n'
        )

    def box(self, x: int, y: int, w: int, h: int, kind: tuple[str, str], text: str) -> None:
        """A box with lines of text, the first one bold."""
        lines = text.split("\n")
        fill, line = kind
        self._parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="6" fill="{fill}" '
            f'stroke="{line}"/>\n'
        )
        top = y + h / 2 - (len(lines) - 1) * LINE / 2 + 5
        for number, line_of_text in enumerate(lines):
            weight = ' font-weight="bold"' if number == 0 else ' font-size="13"'
            self.words(x + w // 2, round(top + number * LINE), line_of_text, weight)

    def arrow(self, *points: tuple[int, int]) -> None:
        path = " ".join(f"{x},{y}" for x, y in points)
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="#555" stroke-width="1.5" '
            'marker-end="url(#end)"/>\n'
        )

    def svg(self) -> str:
        return "".join(self._parts) + "</svg>\n"


def rule() -> Picture:
    """One text, four ways to run it."""
    own = Picture(760, 330)
    own.box(250, 15, 260, 70, TEXT, "rule text\nrules/lion.py\nnumbers in, numbers out")
    ways = (
        ("run on tensors", "reference\nplain torch\nany device"),
        ("compiled", "triton\nNVIDIA, AMD, Intel\nGPUs"),
        ("printed as C++", "cuda\nnvcc\nNVIDIA GPUs"),
        ("printed as C++", "cpu\ng++, clang\nAVX-512, AVX2, NEON"),
    )
    for number, (how, text) in enumerate(ways):
        x = 15 + 186 * number
        own.arrow((380, 85), (380, 104), (x + 70, 104), (x + 70, 150))
        own.words(x + 78, 130, how, ' font-size="13"', "start")
        own.box(x, 152, 172, 78, WORK, text)
        own.arrow((x + 86, 230), (x + 86, 262))
    own.box(15, 264, 730, 48, MEMORY, "the walker of each backend\ngoes over memory; no formula")
    return own


GRADIENT = "gradient g\nn rows, m columns"
READ_1 = "read 1\nof each row: mean g²,\nits moment\nof each column: sums of\ng² and g² / row"
SUMS = "sums\nn row moments\nm column sums of g²\nm column sums of h"
AGAIN = "g again, and p\ng comes from a cache,\nif it fits there"
FINISH = "finish\ncolumn moments\nΣu² = mean Σ h / col\nstep size, decay"
READ_2 = "read 2\nu = g · row factor\n· column factor\np = p - step u"


def reads() -> Picture:
    """The two reads of Adafactor."""
    own = Picture(760, 392)
    own.box(30, 20, 190, 150, MEMORY, GRADIENT)
    own.box(310, 20, 190, 150, WORK, READ_1)
    own.box(560, 20, 180, 150, TEXT, SUMS)
    own.box(30, 240, 190, 130, MEMORY, AGAIN)
    own.box(310, 240, 190, 130, WORK, READ_2)
    own.box(560, 240, 180, 130, WORK, FINISH)
    own.arrow((220, 95), (306, 95))
    own.arrow((500, 95), (556, 95))
    own.arrow((650, 170), (650, 236))
    own.arrow((560, 305), (504, 305))
    own.arrow((220, 305), (306, 305))
    caption = "Clipping needs the RMS of u before p is written. The sums of read 1 give it."
    own.words(330, 210, caption, ' font-style="italic"')
    return own


NEW_PLAN = "new plan\ncheck every parameter,\nmake states, sort into\nbuckets"
BUCKET = "a bucket\nsame rule, device and dtypes,\nof any group: a table with\naddresses and sizes"


def step() -> Picture:
    """What a step does, and when it makes a plan."""
    own = Picture(760, 300)
    own.box(15, 30, 150, 84, OTHER, "opt.step()\nclosure, hooks")
    own.box(215, 30, 190, 84, WORK, "watch\nis each tensor where\nthe plan saw it?")
    own.box(455, 30, 130, 84, WORK, "scalars\nlr, decay, bias\nin float64")
    own.box(630, 30, 115, 84, MEMORY, "launch\none call for\neach bucket")
    own.box(215, 190, 190, 92, WORK, NEW_PLAN)
    own.box(455, 190, 290, 92, MEMORY, BUCKET)
    own.arrow((165, 72), (211, 72))
    own.arrow((405, 72), (451, 72))
    own.arrow((585, 72), (626, 72))
    own.arrow((310, 114), (310, 186))
    own.arrow((405, 236), (451, 236))
    own.arrow((520, 190), (520, 118))
    own.words(428, 64, "yes", ' font-size="13"')
    own.words(318, 154, "no", ' font-size="13"', "start")
    return own


PICTURES = {"rule": rule, "two-reads": reads, "step": step}


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
