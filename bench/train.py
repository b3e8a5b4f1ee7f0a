"""`python -m bench.train`: trains small models with ours and with the peer, from the same weights
and on the same text. It shows loss curves, their differences, speed and memory."""

import argparse
import json
import os
import pickle
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields
from itertools import product
from pathlib import Path
from typing import Any

import torch

from bench.apart import Failed, in_processes
from bench.contestants import CONTESTANTS, OPTIMIZERS, OURS, PAIR
from bench.curves import draw
from bench.devices import DEVICES
from bench.environment import environment
from bench.lists import DTYPES
from bench.models import MODELS
from bench.progress import Progress
from bench.settings import ACCUMULATE, Settings
from bench.text import Text, repository_text
from bench.train_table import PROCESSES, comparisons, label, table
from bench.training import Rank, Saving, train

OUT = Path(__file__).parent / "out" / "train"
ALL = (("gpt", "adamw"), ("t5", "hf-adafactor"))
HELP = {
    "model": ", ".join(MODELS),
    "optimizer": ", ".join(OPTIMIZERS),
    "schedule": "any of fusedstep.schedules.SCHEDULES, after a warm-up of a tenth; default linear",
    "schedule_settings": "more arguments of the schedule: power=2 lr_end=0.1",
    "lr": "default: the one in bench/optimizers.py",
    "weight_decay": "for the group that decays",
    "clip": "the largest norm of all gradients together; inf clips nothing",
    "batch": "rows of a step, in all micro-batches together",
    "micro_batches": "how many gradients are summed before a step",
    "accumulate": f"{' or '.join(ACCUMULATE)}: in .grad, or by fusedstep.accumulate",
    "dtype": f"of the parameters: {', '.join(DTYPES)}",
    "device": ", ".join(DEVICES),
    "threads": "0: torch's own choice",
}
DERIVED = (None, "", ())  # defaults that depend on the other settings


def run(
    settings: Settings,
    contestants: Sequence[str] = PAIR,
    *,
    ddp: bool = False,
    saving: Saving | None = None,
    resume: dict[str, Path] | None = None,
    out: Path | None = None,
    text: str | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Runs every contestant in a process of its own, and reports what it measured or why it failed.

    Arguments:
        ddp: run every contestant again, as two processes with half of each batch.
        resume: the checkpoint that each contestant starts from.
        out: the folder for the numbers and the picture, which are written after each run.
        text: what to read instead of this repository's text.
    """
    if ddp:
        check_ddp(settings, saved=bool(saving or resume))
    characters = repository_text() if text is None else text
    facts = environment(command, DEVICES[settings.device])
    report: dict[str, Any] = {
        "environment": {
            **facts,
            "threads": settings.threads,
            "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "torch's own"),
        },
        "text": Text(characters).facts,
        "settings": asdict(settings),
        "interrupted": False,
        "runs": {},
        "comparisons": [],
    }
    counts = (1, PROCESSES) if ddp else (1,)
    for contestant, count in product(contestants, counts):
        name = label(contestant, count)
        progress = Progress(f"{settings.name} {name}")
        arguments = (settings, contestant, characters, saving, (resume or {}).get(contestant))
        try:
            outcome = run_together(arguments, progress, count)
        except KeyboardInterrupt:
            report["interrupted"] = True
            print("\ninterrupted: only finished runs are kept", file=sys.stderr)
        else:
            report["runs"][name] = outcome
            report["comparisons"] = comparisons(report["runs"])
            progress.done(summary(outcome))
        if out is not None:
            write(report, out / settings.name)
        if report["interrupted"]:
            break
    return report


def run_together(arguments: tuple[Any, ...], progress: Progress, count: int) -> dict[str, Any]:
    """Runs one contestant in `count` processes. The first one reports its steps."""
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        first, *others = (Rank(number, count, meeting) for number in range(count))
        members = [(*arguments, first, progress.show), *((*arguments, rank) for rank in others)]
        try:
            outcomes = in_processes(train, members)
        except Failed as error:
            return {"failed": str(error)}
    outcome = {**outcomes[0], "processes": count}
    if count > 1:
        outcome["processes_agree"] = len({each["weights_sha256"] for each in outcomes}) == 1
    return outcome


def summary(outcome: dict[str, Any]) -> str:
    if "failed" in outcome:
        return str(outcome["failed"])
    loss, speed = outcome["validation"][-1][1], outcome["characters_a_second"]
    return f"validation loss {loss:.3f}, {speed:.0f} characters/s"


def write(report: dict[str, Any], stem: Path) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    try:
        draw(report, stem.with_suffix(".png"))
    except ImportError:
        print("matplotlib is not installed: no picture", file=sys.stderr)


def check_ddp(settings: Settings, saved: bool) -> None:
    pieces = PROCESSES * settings.micro_batches
    if settings.batch % pieces:
        raise ValueError(
            f"ddp: batch should be a multiple of {pieces}, because {PROCESSES} processes share "
            f"each of micro_batches={settings.micro_batches}, but is: {settings.batch}"
        )
    if settings.device != "cpu":
        raise ValueError(f"ddp: the processes share a CPU: leave out device={settings.device}")
    if settings.accumulate != "grad":
        raise ValueError(
            "ddp: DistributedDataParallel averages .grad only: leave out "
            f"accumulate={settings.accumulate}"
        )
    if saved:
        raise ValueError(
            "ddp: a checkpoint holds the random state of one process only: leave out save and "
            "resume"
        )


def arguments() -> tuple[argparse.Namespace, list[Settings], dict[str, Path] | None]:
    """The arguments, the settings of each model's runs, and the checkpoints to start from."""
    parser = argparse.ArgumentParser("python -m bench.train", description=__doc__)
    add = parser.add_argument
    add("--all", action="store_true", help=f"the runs of {' and '.join(map('-'.join, ALL))}")
    add("--contestants", nargs="+", choices=CONTESTANTS, default=list(PAIR))
    add("--ddp", action="store_true", help=f"run each again as {PROCESSES} processes, by gloo")
    add("--save", type=Path, metavar="DIR", help="folder for checkpoints")
    add("--save-every", type=int, metavar="N", help="steps between checkpoints")
    add(
        "--resume",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="a checkpoint of one contestant, or one of each",
    )
    add("--out", type=Path, default=OUT, help="default: bench/out/train")
    for field in fields(Settings):
        kind = float if field.default is None else type(field.default)
        form: dict[str, Any] = {"nargs": "+"} if kind is tuple else {"type": kind}
        default = None if field.default in DERIVED else f"default {field.default}"
        text = "; ".join(filter(None, (HELP.get(field.name), default)))
        option = f"--{field.name.replace('_', '-')}"
        add(option, default=argparse.SUPPRESS, help=text, **form)
    asked = parser.parse_args()
    names = {field.name for field in fields(Settings)}
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(asked).items()
        if name in names
    }
    try:
        return asked, *chosen(asked, given)
    except ImportError as error:
        parser.exit(1, f"cannot import fusedstep ({error}): run pip install -e . first\n")
    except (OSError, ValueError) as error:
        parser.error(str(error))


def chosen(
    asked: argparse.Namespace, given: dict[str, Any]
) -> tuple[list[Settings], dict[str, Path] | None]:
    if (asked.save is None) != (asked.save_every is None):
        raise ValueError("--save and --save-every belong together")
    if asked.save_every is not None and asked.save_every < 1:
        raise ValueError(f"--save-every should be 1 or more but is: {asked.save_every}")
    if asked.resume:
        return resumed(asked, given)
    if not asked.all:
        settings = [Settings(**given)]
    elif fixed := {"model", "optimizer", "schedule", "lr"} & set(given):
        raise ValueError(f"--all chooses its own {', '.join(sorted(fixed))}: leave this out")
    else:
        settings = [Settings(model, optimizer, **given) for model, optimizer in ALL]
    if asked.ddp:
        for each in settings:
            check_ddp(each, saved=asked.save is not None)
    return settings, None


def resumed(
    asked: argparse.Namespace, given: dict[str, Any]
) -> tuple[list[Settings], dict[str, Path]]:
    """A run continues as it began, with the settings and contestants of the checkpoints."""
    refused = [*given, *(name for name in ("all", "ddp") if getattr(asked, name))]
    if refused:
        raise ValueError(
            f"--resume takes its settings from the checkpoint: leave out {', '.join(refused)}"
        )
    settings, files = set(), {}
    for path in asked.resume:
        try:
            saved = torch.load(path, weights_only=True, map_location="cpu")
            contestant, saved_settings = saved["contestant"], saved["settings"]
        except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
            raise ValueError(f"--resume: {path} is no checkpoint of a training run") from error
        settings.add(Settings(**saved_settings))
        files[contestant] = path
    if len(settings) > 1 or len(files) < len(asked.resume):
        raise ValueError("--resume: give checkpoints of one run, one of each contestant")
    asked.contestants = [name for name in CONTESTANTS if name in files]
    return list(settings), files


def main() -> int:
    asked, settings, resume = arguments()
    text = repository_text()
    reports = []
    for each in settings:
        report = run(
            each,
            asked.contestants,
            ddp=asked.ddp,
            saving=None if asked.save is None else Saving(asked.save, asked.save_every),
            resume=resume,
            out=asked.out,
            text=text,
            command=shlex.join(["python", "-m", "bench.train", *sys.argv[1:]]),
        )
        reports.append(report)
        page = table(reports)
        if asked.all:
            (asked.out / "train.md").write_text(page)
        if report["interrupted"]:
            break
    print(page)
    print(f"written to {asked.out}", file=sys.stderr)
    if reports[-1]["interrupted"]:
        return 130
    outcomes = [run for report in reports for run in report["runs"].items()]
    return int(any("failed" in run for name, run in outcomes if name.startswith(OURS)))


if __name__ == "__main__":
    sys.exit(main())
