"""`python -m bench.step`: one whole optimizer step of fusedstep and its peers, over lists of
parameters: time, bytes a second against a copy's, launches, host time, extra memory."""

import argparse
import sys
from dataclasses import asdict

from bench.clock import copy_bandwidth
from bench.command import Report, checked, names_of, options, positive
from bench.devices import Device
from bench.lists import DTYPES, LISTS
from bench.plot import plot
from bench.progress import Progress
from bench.providers import HERE, OURS, RULES, Race
from bench.race import Options, run_apart
from bench.table import LEGEND, Row, markdown, rows_of, text

QUICK_BUDGET = 1.0  # seconds of timed rounds a race
QUICK_LISTS = ("small", "tiny", "host")


def arguments() -> tuple[argparse.Namespace, Device, list[Race]]:
    """What was asked for, and the races that follow from it."""
    parser = options("step", __doc__, HERE)
    add = parser.add_argument
    add("--lists", nargs="+", choices=LISTS, help="default: the device's; with --quick light ones")
    add("--dtypes", nargs="+", choices=DTYPES, help="default: float32, Adafactor bfloat16 too")
    add("--rounds", type=positive, help="default: as many as fit into a few seconds a race")
    add("--threads", type=positive, help="default: torch's own choice")
    add("--quick", action="store_true", help="a look in well under a minute")
    asked, device = checked(parser)
    races = races_on(device, asked)
    if not races:
        parser.error("these rules, lists, dtypes and providers have no race in common")
    return asked, device, races


def races_on(device: Device, asked: argparse.Namespace) -> list[Race]:
    lists = asked.lists or (QUICK_LISTS if asked.quick else device.lists)
    races = []
    for rule in asked.rules:
        names = names_of(rule, asked)
        for chosen in (LISTS[name] for name in lists):
            dtypes = asked.dtypes or device.dtypes or RULES[rule].dtypes
            if chosen.host_bound:  # where the dtype hardly matters
                dtypes = dtypes[:1]
            if chosen.dtypes is not None:
                dtypes = tuple(dtype for dtype in dtypes if dtype in chosen.dtypes)
            if names and chosen.is_raced(rule, RULES[rule].family):
                races += [Race(rule, chosen, dtype, names) for dtype in dtypes]
    return races


def summary(rows: list[Row]) -> str:
    return ", ".join(
        f"{row.provider} " + (f"{row.ms:.3f} ms" if row.ms else row.note) for row in rows
    )


def main() -> int:
    asked, device, races = arguments()
    budget = QUICK_BUDGET if asked.quick else device.budget
    settings = Options(asked.rounds, budget, asked.threads, device.kind)
    settings.set_threads()
    report = Report("step", asked, device)
    rows: list[Row] = []
    copy, disturbed = 0.0, False

    def write() -> None:
        report.write(
            markdown(rows, report.headline(copy), device),
            [asdict(row) for row in rows],
            copy_bytes_a_second=copy,
            copy_disturbed=disturbed,
        )

    try:
        progress = Progress("copy bandwidth")
        copy, disturbed = copy_bandwidth(device, progress.on_round)
        progress.done(f"{copy / 1e9:.1f} GB/s" + (", disturbed" if disturbed else ""))
        device.release_memory()
        for number, race in enumerate(races, 1):
            progress = Progress(f"[{number}/{len(races)}] {race}")
            finished = rows_of(race, run_apart(race, settings, progress), copy, device)
            rows += finished
            progress.done(summary(finished))
            write()
    except KeyboardInterrupt:
        report.interrupt()
    if rows:
        write()
        line = report.headline(copy)
        page = f"{line}\n\n{text(rows)}\n\n{LEGEND}{device.legend}"
        report.finish(page, lambda path: plot(rows, line, copy, path))
    ours_failed = any(row.provider.startswith(OURS) and row.ms is None for row in rows)
    return 130 if report.interrupted else int(ours_failed)


if __name__ == "__main__":
    sys.exit(main())
