"""The table as a picture: a column for each rule, a panel for each race, a line at the floor."""

from itertools import groupby
from pathlib import Path

from bench.providers import OURS
from bench.table import Row, percent, race_key

OURS_COLOR, PEER_COLOR, FLOOR_COLOR = "#d1495b", "#a9b4c6", "#1d3557"


def label(row: Row) -> str:
    ratio = f" ({row.ratio:.3g}x)" if row.ratio and row.provider != OURS else ""
    share = f", {percent(row.share_of_floor)} of floor" if row.share_of_floor else ""
    return f"{row.ms:.3g} ms{ratio}{share}"


def plot(rows: list[Row], headline: str, floor_is: str, path: Path) -> None:
    """Draws the rows that have times."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    timed = [row for row in rows if row.ms]
    if not timed:
        return

    races = [(key, list(group)) for key, group in groupby(timed, race_key)]
    rules = list(dict.fromkeys(row.rule for row in timed))
    columns = [[race for race in races if race[0][0] == rule] for rule in rules]
    height, bars_room = max(map(len, columns)), max(len(group) for _, group in races)
    figure, grid = pyplot.subplots(
        height, len(columns), figsize=(4.7 * len(columns), 1.75 * height + 0.9), squeeze=False
    )
    for across, column in enumerate(columns):
        for panel in grid[len(column) :, across]:
            panel.set_visible(False)
        for panel, (key, group) in zip(grid[:, across], column, strict=False):
            times = [row.ms or 0.0 for row in group]
            colors = [OURS_COLOR if row.provider.startswith(OURS) else PEER_COLOR for row in group]
            bars = panel.barh([row.provider for row in group], times, color=colors, height=0.72)
            labels = [label(row) for row in group]
            paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            panel.bar_label(bars, labels, padding=4, fontsize=8, bbox=paper)
            lowest = min(times)
            if floor := group[0].floor_ms:
                lowest = min(lowest, floor)
                panel.axvline(floor, color=FLOOR_COLOR, linestyle="--", linewidth=1.2, zorder=2)
            # On a log axis bars need a left end, and their labels need room on the right.
            spread = max(times) / lowest * 2
            panel.set_xscale("log")
            panel.set_xlim(lowest / 2, max(times) * spread**0.8)
            digits = (1.0, 2.0, 5.0) if spread < 30 else (1.0,)
            panel.xaxis.set_major_locator(ticker.LogLocator(subs=digits))
            panel.xaxis.set_major_formatter("{x:g}")
            panel.xaxis.set_minor_formatter(ticker.NullFormatter())
            panel.set_ylim(bars_room - 0.5, -0.6)
            panel.set_title("  ".join((*key, group[0].note)), fontsize=9, loc="left")
            panel.tick_params(labelsize=8)
            panel.spines[["top", "right"]].set_visible(False)
    title = ("One optimizer step in ms, log scale", f"dashed: the floor, {floor_is}")
    figure.suptitle("\n".join((*title, *headline.split("; "))), fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
