"""The rows of `python -m bench.sharded` in Markdown, and their picture."""

from itertools import groupby
from pathlib import Path

from bench.plot import OURS_COLOR, PEER_COLOR
from bench.providers import OURS
from bench.sharded_run import ShardedRow

HEADINGS = (
    *("rule", "list", "dtype", "processes", "provider", "ms", "quartiles", "ratio"),
    *("collectives", "MB", "rounds", "disturbed", "note"),
)
ALIGNMENT = (":--",) * 3 + ("--:", ":--") + ("--:",) * 7 + (":--",)

LEGEND = """\
Processes of one machine that talk by gloo, with one thread each. Every parameter is a DTensor whose
rows are split, as FSDP2 splits them. ms: median time of one whole step in the process that took
longest. ratio: how many times as long as fusedstep, as the median of paired rounds. collectives: a
step's, as torch ran them. MB: their payload a step, which is the numbers that an all-reduce adds up
and all that an all-gather brings together. disturbed: rounds in which processes that are not in the
race used the CPU; they count all the same.

gather: all parameters and gradients go to every process in two messages, every process takes the
whole step with fusedstep, and keeps its rows. That takes as much memory as one process alone.
dtensor-operators: transformers' formulas in torch's operators on DTensors, a tensor after another.
The other rows are torch's and transformers' own optimizers."""


def markdown(rows: list[ShardedRow], headline: str) -> str:
    lines = ["# One step over sharded parameters", "", headline, ""]
    body = [HEADINGS, ALIGNMENT, *map(cells, rows)]
    return "\n".join([*lines, *("| " + " | ".join(line) + " |" for line in body), "", LEGEND, ""])


def cells(row: ShardedRow) -> tuple[str, ...]:
    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else form.format(value)

    return (
        *(row.rule, row.list, row.dtype, str(row.processes), row.provider),
        shown(row.ms, "{:.2f}"),
        "{:.2f}..{:.2f}".format(*row.quartiles_ms) if row.quartiles_ms else "-",
        shown(row.ratio, "{:.2f}"),
        shown(row.collectives, "{}"),
        shown(None if row.bytes is None else row.bytes / 1e6, "{:.3f}"),
        *(str(row.rounds), str(row.disturbed), row.note.replace("|", "\\|")),
    )


def race_of(row: ShardedRow) -> tuple[str, str, str, int]:
    return row.rule, row.list, row.dtype, row.processes


def draw(rows: list[ShardedRow], headline: str, path: Path) -> None:
    """A panel for each race, a column for each number of processes."""
    from matplotlib.figure import Figure

    races = [(key, list(own)) for key, own in groupby((r for r in rows if r.ms), race_of)]
    if not races:
        return
    counts = sorted({key[3] for key, _ in races})
    columns = [[race for race in races if race[0][3] == count] for count in counts]
    height = max(map(len, columns))
    figure = Figure(figsize=(5.2 * len(columns), 1.6 * height + 0.9))
    grid = figure.subplots(height, len(columns), squeeze=False)
    for across, column in enumerate(columns):
        for panel in grid[len(column) :, across]:
            panel.set_visible(False)
        for panel, (key, own) in zip(grid[:, across], column, strict=False):
            times = [row.ms or 0.0 for row in own]
            colors = [OURS_COLOR if row.provider == OURS else PEER_COLOR for row in own]
            bars = panel.barh([row.provider for row in own], times, color=colors, height=0.72)
            panel.bar_label(bars, list(map(label, own)), padding=4, fontsize=8)
            panel.set_xlim(0, max(times) * 2.1)
            panel.invert_yaxis()
            rule, chosen, dtype, count = key
            panel.set_title(f"{rule}  {chosen}  {dtype}, {count} processes", fontsize=9, loc="left")
            panel.tick_params(labelsize=8)
            panel.spines[["top", "right"]].set_visible(False)
    title = "One step over parameters split by rows, in ms"
    figure.suptitle("\n".join((title, *headline.split("; "))), fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def label(row: ShardedRow) -> str:
    ratio = f" ({row.ratio:.3g}x)" if row.ratio and row.provider != OURS else ""
    return f"{row.ms:,.0f} ms{ratio}, {row.collectives} collectives"
