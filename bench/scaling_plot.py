"""The picture of `python -m bench.scaling`: a row for each rule, a panel for each curve."""

from pathlib import Path

from bench.plot import FLOOR_COLOR, OURS_COLOR, PEER_COLOR
from bench.providers import OURS
from bench.scaling_table import Curves

MARKERS = "os^Dvx"


def draw(curves: Curves, headline: str, floor_is: str, path: Path) -> None:
    from matplotlib.figure import Figure

    rules = list(dict.fromkeys(curve.rule for curve in curves))
    by_rule = [[curve for curve in curves if curve.rule == rule] for rule in rules]
    width, height = max(map(len, by_rule)), len(rules)
    figure = Figure(figsize=(4.3 * width, 3.0 * height + 0.9))
    grid = figure.subplots(height, width, squeeze=False)
    for panels, row in zip(grid, by_rule, strict=True):
        for panel in panels[len(row) :]:
            panel.set_visible(False)
        for panel, curve in zip(panels, row, strict=False):
            sizes = curves[curve]
            floors = {size: ms for size, rows in sizes.items() if (ms := rows[0].floor_ms)}
            at, line = list(floors), list(floors.values())
            panel.plot(at, line, "--", color=FLOOR_COLOR, linewidth=1.2, label="floor")
            # Draw ours last, so that no peer hides them.
            for place, name in reversed(list(enumerate(curve.names))):
                points = [
                    (size, time.ms)
                    for size, rows in sizes.items()
                    for time in rows
                    if time.provider == name and time.ms is not None
                ]
                color = OURS_COLOR if name.startswith(OURS) else PEER_COLOR
                panel.plot(
                    [size for size, _ in points],
                    [ms for _, ms in points],
                    color=color,
                    marker=MARKERS[place % len(MARKERS)],
                    markersize=4,
                    linewidth=2 if name == OURS else 1.2,
                    label=name,
                )
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_title(str(curve), fontsize=9, loc="left")
            panel.set_xlabel(curve.axis, fontsize=8)
            panel.tick_params(labelsize=8)
            panel.grid(alpha=0.25)
            panel.spines[["top", "right"]].set_visible(False)
            panel.legend(fontsize=7, frameon=False)
    title = ("One optimizer step in ms", f"dashed: the floor, {floor_is}")
    figure.suptitle("\n".join((*title, *headline.split("; "))), fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
