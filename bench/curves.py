"""The picture of a training run: loss curves over each other, and below them their differences."""

from pathlib import Path
from typing import Any

from bench.contestants import NUDGED, OURS, PEER, STORED
from bench.plot import OURS_COLOR
from bench.train_table import description, differences, losses

STYLES = {OURS: (OURS_COLOR, "-", "o"), PEER: ("#1d3557", "--", "x"), NUDGED: ("gray", ":", "+")}
COLORS = ("black", "#e76f51", "#2a9d8f", "#264653", "#8ab17d", "#9b5de5")
STYLES |= {
    name: (color, "-", marker) for name, color, marker in zip(STORED, COLORS, "o^sx+D", strict=True)
}


def draw(report: dict[str, Any], path: Path) -> None:
    """Draws the runs that were finished, if there are any."""
    finished = {label: run for label, run in report["runs"].items() if "failed" not in run}
    if not finished:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 6.4), layout="constrained")
    curves, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for label, run in finished.items():
        color, line, marker = STYLES[label.partition(",")[0]]
        opacity = 0.6 if run["processes"] == 1 else 0.3
        steps = range(1, len(run["losses"]) + 1)
        curves.plot(steps, run["losses"], line, color=color, linewidth=0.8, alpha=opacity)
        at, validation = zip(*run["validation"], strict=True)
        curves.plot(
            *(at, validation, line + marker),
            color=color,
            alpha=opacity + 0.3,
            linewidth=1,
            label=f"{label}: {run['made_by']}",
        )
    curves.set_ylabel("loss (points: validation)", fontsize=8)
    curves.legend(fontsize=8, frameon=False)
    for pair in report["comparisons"]:
        between = differences(losses, finished, *pair["of"])
        steps = range(1, len(between) + 1)
        below.plot(steps, between, linewidth=0.9, label=" - ".join(pair["of"]))
    if report["comparisons"]:
        below.legend(fontsize=7, frameon=False)
    below.axhline(0.0, color="lightgray", linewidth=0.8, zorder=0)
    below.set_ylabel("difference", fontsize=8)
    below.set_xlabel("step", fontsize=8)
    for panel in (curves, below):
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    lines = (title(report["settings"]), *description(report).split("; "))
    figure.suptitle("\n".join(lines), fontsize=8)
    figure.savefig(path, dpi=110)


def title(settings: dict[str, Any]) -> str:
    words = ("batch", "context", "width", "layers", "dtype")
    sizes = ", ".join(f"{word} {settings[word]}" for word in words)
    return f"{settings['model']} with {settings['optimizer']}, {settings['schedule']}, {sizes}"
