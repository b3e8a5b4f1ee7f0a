"""The curves of `python -m bench.scaling`, and their tables in Markdown."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from bench.lists import ParameterList
from bench.providers import OURS, Race
from bench.table import Row

LEGEND = """\
ms: median time of one whole opt.step(); in brackets how many times as long as fusedstep's, from
paired rounds. The floor is {floor_is}: the fewest that the rule must move (bench/lists.py)."""


def square(elements: int) -> ParameterList:
    side = math.isqrt(elements)
    return ParameterList(str(elements), ((side, side),))


def many(tensors: int) -> ParameterList:
    return ParameterList(str(tensors), ((32, 32),) * tensors)


AXES: dict[str, Callable[[int], ParameterList]] = {"tensors": many, "elements": square}
TITLES = {"elements": "one square matrix", "tensors": "tensors of (32, 32)"}


@dataclass(frozen=True)
class Curve:
    """The times of several providers along one axis: a panel of the picture."""

    rule: str
    axis: str
    dtype: str
    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.rule}, {self.dtype}: {TITLES[self.axis]}"

    def race(self, size: int) -> Race:
        return Race(self.rule, AXES[self.axis](size), self.dtype, self.names)


Curves = dict[Curve, dict[int, list[Row]]]  # the rows of each size that is finished


def power(size: int) -> str:
    """Powers of two from 2^10 on are written as such."""
    exponent = size.bit_length() - 1
    return f"2^{exponent}" if size == 1 << exponent and exponent >= 10 else str(size)


def markdown(curves: Curves, headline: str, floor_is: str) -> str:
    lines = ["# A step's time against size", "", headline, "", LEGEND.format(floor_is=floor_is)]
    for curve, sizes in curves.items():
        lines += ["", f"## {curve}", ""]
        lines.append(f"| {curve.axis} | floor | {', ms | '.join(curve.names)}, ms | note |")
        lines.append("|" + "--:|" * (2 + len(curve.names)) + ":--|")
        for size, rows in sizes.items():
            floor = "-" if rows[0].floor_ms is None else f"{rows[0].floor_ms:.3g}"
            cells = [power(size), floor, *map(time_and_ratio, rows), note_of(rows)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def time_and_ratio(row: Row) -> str:
    if row.ms is None:
        return "-"
    ratio = f" ({row.ratio:.3g} x)" if row.ratio and row.provider != OURS else ""
    return f"{row.ms:.3g}{ratio}"


def note_of(rows: list[Row]) -> str:
    if len({row.note for row in rows}) == 1:
        return rows[0].note
    return "; ".join(f"{row.provider} {row.note}" for row in rows if row.note).replace("|", "\\|")
