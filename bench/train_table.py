"""The table of training runs, and how much runs differ that started from the same weights."""

from collections.abc import Callable, Sequence
from typing import Any

from bench.contestants import CONTESTANTS, NUDGED, OURS, PEER, STORED
from bench.devices import DEVICES
from bench.environment import headline

FLOAT32 = next(iter(STORED))
PROCESSES = 2  # of a run that several processes share
HEADINGS = (
    *("run", "by", "loss", "validation", "characters/s", "step ms", "opt.step() ms", "share"),
    *("peak MiB", "of the run", "note"),
)
ENDS = 10  # steps
LEGEND = f"""\
loss: mean of the first {ENDS} and of the last {ENDS} steps. validation: before the first step and
after the last. Times are medians over steps. Runs come one after the other, in a process each, and
are not paired. disturbed: other processes used the CPU; threads that spin while they wait can then
make a run several times as slow. share: opt.step()'s part of the whole step. peak: memory of the
process, or of torch's allocator on a GPU; of the run: without what was there before the model, such
as imports. {NUDGED} is the peer from weights that differ by one rounding: it shows how much two
runs of this length differ for that reason alone."""

Run = dict[str, Any]
Losses = Callable[[Run], list[float]]


def label(contestant: str, processes: int) -> str:
    return contestant if processes == 1 else f"{contestant}, {processes} processes"


def comparisons(runs: dict[str, Run]) -> list[dict[str, Any]]:
    """Compares each finished run with the one that it should equal: the peer's, or its own in one
    process."""
    pairs = [
        (label(name, count), label(PEER, count))
        for count in (1, PROCESSES)
        for name in (OURS, NUDGED)
    ]
    pairs += [(label(name, PROCESSES), name) for name in CONTESTANTS]
    pairs += [(name, FLOAT32) for name in STORED if name != FLOAT32]
    return [
        {
            "of": [one, other],
            "largest_loss_difference": largest(losses, runs, one, other),
            "largest_validation_difference": largest(validation_losses, runs, one, other),
            "weights_equal": runs[one]["weights_sha256"] == runs[other]["weights_sha256"],
        }
        for one, other in pairs
        if all(name in runs and "failed" not in runs[name] for name in (one, other))
    ]


def losses(run: Run) -> list[float]:
    losses: list[float] = run["losses"]
    return losses


def validation_losses(run: Run) -> list[float]:
    return [loss for _, loss in run["validation"]]


def differences(losses_of: Losses, runs: dict[str, Run], one: str, other: str) -> list[float]:
    return [a - b for a, b in zip(losses_of(runs[one]), losses_of(runs[other]), strict=True)]


def largest(losses_of: Losses, runs: dict[str, Run], one: str, other: str) -> float:
    return max(map(abs, differences(losses_of, runs, one, other)))


def description(report: dict[str, Any]) -> str:
    """Device, versions, commit and text, for the head of a table or picture."""
    line = headline(report["environment"], None, DEVICES[report["settings"]["device"]])
    text = report["text"]
    return f"{line}; text of {text['characters']} characters, sha256 {text['sha256'][:12]}"


def table(reports: Sequence[dict[str, Any]]) -> str:
    """All runs, in Markdown."""
    rows: list[tuple[str, ...]] = [HEADINGS, tuple(":--" for _ in HEADINGS)]
    sentences = []
    for report in reports:
        settings = report["settings"]
        name = f"{settings['model']}-{settings['optimizer']}, {settings['schedule']}"
        rows += [cells(name, who, run) for who, run in report["runs"].items()]
        sentences += [f"- {name}: {sentence(pair)}" for pair in report["comparisons"]]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    page = ["# Training runs", "", description(reports[0]), "", *lines, "", *sentences]
    return "\n".join([*page, *([""] if sentences else []), LEGEND, ""])


def sentence(pair: dict[str, Any]) -> str:
    one, other = pair["of"]
    bits = "the same bits" if pair["weights_equal"] else "not the same bits"
    return (
        f"the losses of {one} and of {other} differ by at most "
        f"{pair['largest_loss_difference']:.2g}, in validation by "
        f"{pair['largest_validation_difference']:.2g}; at the end their weights are {bits}"
    )


def cells(name: str, who: str, run: Run) -> tuple[str, ...]:
    if "failed" in run:
        return (name, who, *("-" for _ in HEADINGS[3:]), run["failed"])
    ends = (losses(run)[:ENDS], losses(run)[-ENDS:])
    first, last = (sum(part) / len(part) for part in ends)
    validation = validation_losses(run)
    peak, before = run["peak_bytes"], run["bytes_before"]
    notes = ["disturbed"] if run["disturbed"] else []
    if "processes_agree" in run:
        same = "the same" if run["processes_agree"] else "DIFFERENT"
        notes.append(f"its processes have {same} weights")
    return (
        *(name, f"{who}: {run['made_by']}"),
        f"{first:.3f} -> {last:.3f}",
        f"{validation[0]:.3f} -> {validation[-1]:.3f}",
        f"{run['characters_a_second']:.0f}",
        f"{run['step_ms']:.2f}",
        f"{run['optimizer_ms']:.3f}",
        f"{run['optimizer_share']:.1%}",
        "-" if peak is None else f"{peak / 2**20:.0f}",
        "-" if peak is None else f"{(peak - before) / 2**20:.0f}",
        ", ".join(notes),
    )
