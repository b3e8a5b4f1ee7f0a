"""`python -m bench`: race fusedstep against its peers and write table, numbers and picture."""

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from bench.clock import copy_bandwidth
from bench.devices import DEVICES, Device
from bench.environment import environment, headline
from bench.lists import DTYPES, LISTS
from bench.plot import plot
from bench.providers import OURS, PROVIDERS, RULES, Race
from bench.race import Options, Progress, run_apart
from bench.table import LEGEND, Row, markdown, rows_of, text

QUICK_BUDGET = 1.0  # seconds of timed rounds a race
QUICK_LISTS = ("small", "tiny", "host")


def positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def arguments() -> tuple[argparse.Namespace, list[tuple[Device, list[Race]]]]:
    """What was asked for, and the races on each device that follow from it."""
    parser = argparse.ArgumentParser("python -m bench", description=__doc__)
    add = parser.add_argument
    add("--device", choices=(*DEVICES, "all"), default="cpu", help="all: those that are here")
    add("--rules", nargs="+", choices=RULES, default=list(RULES))
    add("--lists", nargs="+", choices=LISTS, help="default: the device's; with --quick light ones")
    add("--providers", nargs="+", choices=PROVIDERS, default=list(PROVIDERS))
    add("--dtypes", nargs="+", choices=DTYPES, help="default: float32, Adafactor bfloat16 too")
    add("--rounds", type=positive, help="default: as many as fit into a few seconds a race")
    add("--threads", type=positive, help="default: torch's own choice")
    add("--out", type=Path, help="default: bench/out, and bench/out/cuda")
    add("--quick", action="store_true", help="a look in well under a minute")
    asked = parser.parse_args()
    if asked.device == "all":
        devices = [device for device in DEVICES.values() if not device.why_absent()]
    else:
        devices = [DEVICES[asked.device]]
        if devices[0].why_absent():
            parser.exit(1, f"--device {asked.device}: {devices[0].why_absent()}\n")
    races = [(device, races_on(device, asked)) for device in devices]
    if not any(own for _, own in races):
        parser.error("these rules, lists and providers have no race in common")
    if OURS in asked.providers:
        try:
            import_module(OURS)
        except ImportError as error:
            parser.exit(1, f"cannot import fusedstep ({error}): run pip install -e . first\n")
    return asked, races


def races_on(device: Device, asked: argparse.Namespace) -> list[Race]:
    lists = asked.lists or (QUICK_LISTS if asked.quick else device.lists)
    races = []
    for rule in asked.rules:
        names = tuple(n for n in RULES[rule].providers_on(device.kind) if n in asked.providers)
        for chosen in (LISTS[name] for name in lists):
            dtypes = asked.dtypes or device.dtypes or RULES[rule].dtypes
            if chosen.host_bound:  # where the dtype hardly matters
                dtypes = dtypes[:1]
            if chosen.dtypes is not None:
                dtypes = tuple(dtype for dtype in dtypes if dtype in chosen.dtypes)
            if names and RULES[rule].family in chosen.families:
                races += [Race(rule, chosen, dtype, names) for dtype in dtypes]
    return races


def summary(rows: list[Row]) -> str:
    return ", ".join(
        f"{row.provider} " + (f"{row.ms:.3f} ms" if row.ms else row.note) for row in rows
    )


def run_on(device: Device, races: list[Race], asked: argparse.Namespace, out: Path) -> int:
    """All races on one device, their table and their files; the exit status."""
    budget = QUICK_BUDGET if asked.quick else device.budget
    options = Options(asked.rounds, budget, asked.threads, device.kind)
    options.set_threads()
    out.mkdir(parents=True, exist_ok=True)
    facts = environment(shlex.join(["python", "-m", "bench", *sys.argv[1:]]), device)
    rows: list[Row] = []
    copy, disturbed = 0.0, False
    interrupted = False

    def write() -> str:
        """After each race: what comes later may take the process away."""
        line = headline(facts, copy, device)
        numbers = {
            "environment": facts,
            "copy_bytes_a_second": copy,
            "copy_disturbed": disturbed,
            "interrupted": interrupted,
            "rows": [asdict(row) for row in rows],
        }
        (out / "results.json").write_text(json.dumps(numbers, indent=1) + "\n")
        (out / "table.md").write_text(markdown(rows, line, device))
        return line

    try:
        progress = Progress("copy bandwidth")
        copy, disturbed = copy_bandwidth(device, progress.on_round)
        progress.done(f"{copy / 1e9:.1f} GB/s" + (", disturbed" if disturbed else ""))
        device.release_memory()
        for number, race in enumerate(races, 1):
            progress = Progress(f"[{number}/{len(races)}] {race}")
            finished = rows_of(race, run_apart(race, options, progress), copy, device)
            rows += finished
            progress.done(summary(finished))
            write()
    except KeyboardInterrupt:
        interrupted = True
        print("\ninterrupted: only finished races follow", file=sys.stderr)

    if rows:
        line = write()
        print(f"{line}\n\n{text(rows)}\n\n{LEGEND}{device.legend}")
        complaint = plot(rows, line, copy, out / "step.png")
        print(complaint or f"written: results.json, table.md, step.png in {out}", file=sys.stderr)
    ours_failed = any(row.provider.startswith(OURS) and row.ms is None for row in rows)
    return 130 if interrupted else int(ours_failed)


def main() -> int:
    asked, races = arguments()
    status = 0
    for device, own in races:
        default = Path(__file__).parent / "out" / ("" if device.kind == "cpu" else device.kind)
        out = asked.out or default
        if asked.out and len(races) > 1 and device.kind != "cpu":
            out = asked.out / device.kind
        if own and status != 130:
            status = run_on(device, own, asked, out) or status
    return status


if __name__ == "__main__":
    sys.exit(main())
