"""`python -m bench`: race fusedstep against its peers and write table, numbers and picture."""

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from bench.clock import copy_bandwidth
from bench.environment import environment, headline
from bench.lists import DTYPES, LISTS
from bench.plot import plot
from bench.providers import OURS, PROVIDERS, RULES, Race
from bench.race import Options, Progress, run_apart
from bench.table import LEGEND, Row, markdown, rows_of, text

# Seconds of timed rounds a race: all of them, and making their tensors, fit into five minutes.
BUDGET, QUICK_BUDGET = 5.0, 1.0
QUICK_LISTS = ("small", "tiny", "host")


def positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def arguments() -> tuple[argparse.Namespace, list[Race]]:
    """What was asked for, and the races that follow from it."""
    parser = argparse.ArgumentParser("python -m bench", description=__doc__)
    add = parser.add_argument
    add("--rules", nargs="+", choices=RULES, default=list(RULES))
    add("--lists", nargs="+", choices=LISTS, help="default: all; with --quick the light ones")
    add("--providers", nargs="+", choices=PROVIDERS, default=list(PROVIDERS))
    add("--dtypes", nargs="+", choices=DTYPES, help="default: float32, Adafactor bfloat16 too")
    add("--rounds", type=positive, help="default: as many as fit into a few seconds a race")
    add("--threads", type=positive, help="default: torch's own choice")
    add("--out", type=Path, default=Path(__file__).parent / "out", help="default: bench/out")
    add("--quick", action="store_true", help="a look in well under a minute")
    asked = parser.parse_args()
    lists = asked.lists or (QUICK_LISTS if asked.quick else LISTS)
    races = []
    for rule in asked.rules:
        names = tuple(name for name in RULES[rule].providers if name in asked.providers)
        for chosen in (LISTS[name] for name in lists):
            dtypes = asked.dtypes or RULES[rule].dtypes
            if chosen.host_bound:  # where the dtype hardly matters
                dtypes = dtypes[:1]
            if names and RULES[rule].family in chosen.families:
                races += [Race(rule, chosen, dtype, names) for dtype in dtypes]
    if not races:
        parser.error("these rules, lists and providers have no race in common")
    if OURS in asked.providers:
        try:
            import_module(OURS)
        except ImportError as error:
            parser.exit(1, f"cannot import fusedstep ({error}): run pip install -e . first\n")
    return asked, races


def summary(rows: list[Row]) -> str:
    return ", ".join(
        f"{row.provider} " + (f"{row.ms:.3f} ms" if row.ms else row.note) for row in rows
    )


def main() -> int:
    asked, races = arguments()
    options = Options(asked.rounds, QUICK_BUDGET if asked.quick else BUDGET, asked.threads)
    options.set_threads()
    asked.out.mkdir(parents=True, exist_ok=True)
    facts = environment(shlex.join(["python", "-m", "bench", *sys.argv[1:]]))
    rows: list[Row] = []
    copy = 0.0
    interrupted = False
    try:
        progress = Progress("copy bandwidth")
        copy, disturbed = copy_bandwidth(progress.on_round)
        progress.done(f"{copy / 1e9:.1f} GB/s" + (", disturbed" if disturbed else ""))
        for number, race in enumerate(races, 1):
            progress = Progress(f"[{number}/{len(races)}] {race}")
            finished = rows_of(race, run_apart(race, options, progress), copy)
            rows += finished
            progress.done(summary(finished))
    except KeyboardInterrupt:
        interrupted = True
        print("\ninterrupted: only finished races follow", file=sys.stderr)

    if rows:
        line = headline(facts, copy)
        print(f"{line}\n\n{text(rows)}\n\n{LEGEND}")
        numbers = {
            "environment": facts,
            "copy_bytes_a_second": copy,
            "copy_disturbed": disturbed,
            "interrupted": interrupted,
            "rows": [asdict(row) for row in rows],
        }
        (asked.out / "results.json").write_text(json.dumps(numbers, indent=1) + "\n")
        (asked.out / "table.md").write_text(markdown(rows, line))
        complaint = plot(rows, line, copy, asked.out / "step.png")
        print(
            complaint or f"written: results.json, table.md, step.png in {asked.out}",
            file=sys.stderr,
        )
    ours_failed = any(row.provider == OURS and row.ms is None for row in rows)
    return 130 if interrupted else int(ours_failed)


if __name__ == "__main__":
    sys.exit(main())
