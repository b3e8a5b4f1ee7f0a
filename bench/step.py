"""`python -m bench.step`: races whole optimizer steps of fusedstep and its peers over lists of
parameters. It shows time, the share of the floor, launches, host time and extra memory."""

import argparse
import sys
from contextlib import closing
from dataclasses import asdict, replace

from bench.clock import Outcome, copy_bandwidth
from bench.command import Report, checked, command_options, names_of, positive
from bench.devices import Device
from bench.lists import DTYPES, LISTS
from bench.optimizers import ABSENT, HERE, RULES
from bench.plot import plot
from bench.progress import Progress
from bench.providers import OURS, Race
from bench.race import Options, run_apart
from bench.table import LEGEND, Row, cut_note, markdown, rows_of, text

QUICK_BUDGET = 1.0  # seconds of timed rounds a race
QUICK_LISTS = ("small", "tiny", "host")


def arguments() -> tuple[argparse.Namespace, Device, list[Race]]:
    """The arguments, the device, and the races that follow from them."""
    parser = command_options("step", __doc__, HERE)
    add = parser.add_argument
    add("--lists", nargs="+", choices=LISTS, help="default: the device's; with --quick small ones")
    add("--dtypes", nargs="+", choices=DTYPES, help="default: float32 and bfloat16")
    add("--rounds", type=positive, help="default: as many as fit into a few seconds")
    add("--threads", type=positive, help="default: torch's own choice")
    add("--quick", action="store_true", help="small lists, and one second a race")
    asked, device = checked(parser)
    races = races_on(device, asked)
    if not races:
        parser.error("these rules, lists, dtypes and providers have no race in common")
    return asked, device, races


def races_on(device: Device, asked: argparse.Namespace) -> list[Race]:
    lists = asked.lists or (QUICK_LISTS if asked.quick else device.lists)
    races = []
    # All rules race on one list, then on the next. So if time runs out, every rule has its most
    # important lists.
    for chosen in (LISTS[name] for name in lists):
        for rule in asked.rules:
            names = names_of(rule, asked)
            dtypes = asked.dtypes or RULES[rule].dtypes
            if chosen.host_bound:  # the dtype hardly matters there
                dtypes = dtypes[:1]
            if chosen.dtypes is not None:
                dtypes = tuple(dtype for dtype in dtypes if dtype in chosen.dtypes)
            for dtype in dtypes if RULES[rule].races_on(chosen) else ():
                own = tuple(name for name in names if RULES[rule].takes(name, dtype))
                races += [Race(rule, chosen, dtype, own)] if own else []
    return races


def passes(settings: Options, device: Device) -> list[Options]:
    """A profiler counts launches, and it may slow down everything later in its process. So if races
    share a process, we count in a second one, after all of them are timed."""
    if not device.shares_process:
        return [settings]
    return [replace(settings, extras=False), replace(settings, rounds=0)]


def counted(rows: list[Row], outcome: Outcome) -> list[Row]:
    """The rows of a timed race, with the counts of the second process."""
    launches, memory = outcome.launches, outcome.extra_bytes
    return [
        replace(row, launches=launches.get(row.provider), extra_bytes=memory.get(row.provider))
        for row in rows
    ]


def absent_note(asked: argparse.Namespace) -> str:
    """Says who would race, too, if they were installed."""
    if asked.providers != list(HERE):
        return ""
    names = [name for rule in asked.rules for name in RULES[rule].providers_on(asked.device)]
    absent = ", ".join(dict.fromkeys(name for name in names if name in ABSENT))
    return f"Not installed, so not raced: {absent}." if absent else ""


def is_timed(rows: list[Row]) -> bool:
    """Whether there is anything to count."""
    return any(row.ms for row in rows)


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
    found: dict[Race, list[Row]] = {}
    copy, disturbed = 0.0, False

    def write() -> tuple[list[Row], str]:
        """Sorts the rows by rule, writes them, and returns them and what stands above the table."""
        by_rule = sorted(found, key=lambda race: (asked.rules.index(race.rule), races.index(race)))
        rows = [row for race in by_rule for row in found[race]]
        notes = (report.headline(copy), cut_note(races, found), absent_note(asked))
        above = "\n\n".join(filter(None, notes))
        report.write(
            markdown(rows, above, device),
            [asdict(row) for row in rows],
            copy_bytes_a_second=copy,
            copy_disturbed=disturbed,
            floor=device.floor_is,
        )
        return rows, above

    try:
        progress = Progress("copy bandwidth")
        copy, disturbed = copy_bandwidth(device, progress.on_round)
        progress.done(f"{copy / 1e9:.1f} GB/s" + (", disturbed" if disturbed else ""))
        device.release_memory()
        for options in passes(settings, device):
            what = ", counted" if options.rounds == 0 else ""
            left = [race for race in races if race not in found or is_timed(found[race])]
            titled = [(f"[{k}/{len(left)}] {race}{what}", race) for k, race in enumerate(left, 1)]
            with closing(run_apart(titled, options)) as outcomes:
                for title, race in titled:
                    progress = Progress(title)
                    outcome = next(outcomes)
                    if race in found:
                        found[race] = counted(found[race], outcome)
                    else:
                        found[race] = rows_of(race, outcome, copy, device)
                    progress.done(summary(found[race]))
                    write()
    except KeyboardInterrupt:
        report.interrupt()
    rows: list[Row] = []
    if found:
        rows, above = write()
        page = f"{above}\n\n{text(rows)}\n\n{LEGEND}{device.legend}"
        report.finish(page, lambda path: plot(rows, report.headline(copy), device.floor_is, path))
    ours_failed = any(row.provider.startswith(OURS) and row.ms is None for row in rows)
    return 130 if report.interrupted else int(ours_failed)


if __name__ == "__main__":
    sys.exit(main())
