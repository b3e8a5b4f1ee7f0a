"""`python -m bench.sharded`: bytes, collectives and time of a step over parameters that several
processes share, for ours and for other ways."""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from bench.apart import Failed, in_processes
from bench.command import Report, positive
from bench.devices import DEVICES
from bench.lists import LISTS
from bench.optimizers import RULES
from bench.progress import Progress
from bench.providers import OURS
from bench.sharded_run import Found, ShardedRace, ShardedRow, Way, rows_of, work
from bench.sharded_table import cells, draw, markdown
from bench.sharded_ways import transformer, ways_of

DEFAULT_RULES = ("adamw", "adafactor-hf-trainer", "adafactor-torch")
RACE_SECONDS = 400.0  # a race that takes longer is given up


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench.sharded", description=__doc__)
    add = parser.add_argument
    add("--rules", nargs="+", choices=RULES, default=list(DEFAULT_RULES))
    add("--list", choices=LISTS, help="default: the tensors of a small GPT")
    add("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    add("--processes", nargs="+", type=positive, default=[2, 4])
    add("--rounds", type=positive, default=7)
    add("--out", type=Path, help="default: bench/out")
    return parser.parse_args()


def races_of(asked: argparse.Namespace) -> Iterator[ShardedRace]:
    chosen = LISTS[asked.list] if asked.list else transformer()
    for rule in asked.rules:
        for dtype in asked.dtypes:
            for processes in asked.processes:
                names = tuple(ways_of(rule))
                yield ShardedRace(rule, chosen, dtype, processes, names)


def run(race: ShardedRace, rounds: int) -> Found:
    """Runs a race in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        members = [(rank, f"{folder}/meeting", race, rounds) for rank in range(race.processes)]
        try:
            found: Found = in_processes(work, members, RACE_SECONDS)[0]
        except Failed as error:
            return Found({name: Way(failure=str(error)) for name in race.names}, [])
    return found


def main() -> int:
    asked = arguments()
    torch.set_num_threads(1)  # as in each process of a race
    report = Report("sharded", asked, DEVICES["cpu"])
    rows: list[ShardedRow] = []
    messages: dict[str, list[int]] = {}
    races = list(races_of(asked))

    def write() -> str:
        page = markdown(rows, report.headline())
        report.write(page, [asdict(row) for row in rows], numbers_in_our_messages=messages)
        return page

    try:
        for number, race in enumerate(races, 1):
            progress = Progress(f"[{number}/{len(races)}] {race}")
            found = run(race, asked.rounds)
            new = rows_of(race, found)
            rows += new
            messages[str(race)] = found.messages
            write()
            progress.done(", ".join(f"{row.provider} {cells(row)[5]} ms" for row in new))
    except KeyboardInterrupt:
        report.interrupt()
    if rows:
        report.finish(write(), lambda path: draw(rows, report.headline(), path))
    ours_failed = any(row.provider == OURS and row.ms is None for row in rows)
    return 130 if report.interrupted else int(ours_failed)


if __name__ == "__main__":
    sys.exit(main())
