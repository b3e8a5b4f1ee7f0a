"""The picture of `python -m bench.memory`: a row for each rule, a panel for each list and dtype."""

from pathlib import Path

from bench.memory_table import MemoryRow
from bench.plot import OURS_COLOR
from bench.providers import OURS

# The parts of a bar from left to right, with their colors.
PARTS = {"state": "#6b7a90", "kept": "#1d3557", "peak": "#f0b429"}


def draw(rows: list[MemoryRow], headline: str, path: Path) -> None:
    from matplotlib.figure import Figure

    rules = list(dict.fromkeys(row.rule for row in rows))
    columns = list(dict.fromkeys((row.list, row.dtype) for row in rows))
    figure = Figure(figsize=(3.8 * len(columns), 1.5 * len(rules) + 1.1))
    grid = figure.subplots(len(rules), len(columns), squeeze=False)
    for panels, rule in zip(grid, rules, strict=True):
        for panel, (list_name, dtype) in zip(panels, columns, strict=True):
            shown = [row for row in rows if row.key() == (rule, list_name, dtype) and row.use]
            panel.set_visible(bool(shown))
            names = [row.provider for row in shown]
            left = [0.0] * len(shown)
            for part, color in PARTS.items():
                widths = [max(0.0, row.per_parameter()[part]) for row in shown]
                bars = panel.barh(names, widths, left=left, color=color, height=0.7, label=part)
                left = [start + width for start, width in zip(left, widths, strict=True)]
            if shown:
                panel.bar_label(bars, [f"{total:.3g}" for total in left], padding=3, fontsize=7)
                panel.set_xlim(0, 1.2 * max(left) or 1)
            panel.invert_yaxis()
            panel.set_title(f"{rule}  {list_name}  {dtype}", fontsize=8, loc="left")
            panel.tick_params(labelsize=7)
            panel.spines[["top", "right"]].set_visible(False)
            for label in panel.get_yticklabels():
                if label.get_text().startswith(OURS):
                    label.set_color(OURS_COLOR)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(PARTS), fontsize=8, frameon=False)
    title = "Bytes for each parameter, beside parameters and gradients"
    figure.suptitle("\n".join((title, *headline.split("; "))), fontsize=8)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=110)
