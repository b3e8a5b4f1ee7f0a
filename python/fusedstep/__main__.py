"""`python -m fusedstep COMMAND`: what is installed, a schedule's values, a converted checkpoint."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from typing import Any

import torch

from . import __version__, backends
from .convert_file import convert_file
from .schedules.by_name import METRIC_CLASSES, find
from .schedules.draw import draw
from .schedules.trace import example_loss, trace


def info() -> str:
    """The versions, then a line for each backend, in the order in which `auto` prefers them."""
    python = platform.python_version()
    lines = [f"fusedstep {__version__}, torch {torch.__version__}, Python {python}"]
    for name, backend in backends.BACKENDS.items():
        reason = backend.why_absent()
        lines.append(f"  {name:10} " + (f"absent: {reason}" if reason else backend.describe()))
    for device in ("cpu", "cuda", "xpu", "mps"):
        try:
            running = backends.choose("auto", torch.device(device), f"a tensor on {device}")
            lines.append(f"{device} tensors: auto takes {running.name}")
        except ValueError as error:  # an environment variable is wrong
            lines.append(f"{device} tensors: {error}")
    lines.append(f"sharded parameters (DTensors): {_sharded()}")
    return "\n".join(lines)


def _sharded() -> str:
    """How processes of this torch can add up the sums of Adafactor."""
    if not torch.distributed.is_available():
        return "absent: this torch was built without torch.distributed"
    found = []
    for name in ("gloo", "nccl", "xccl", "mpi"):  # older versions of torch do not know all of them
        is_available = getattr(torch.distributed, f"is_{name}_available", None)
        if is_available is not None and is_available():
            found.append(name)
    by = ", ".join(found) or "no library of this torch"
    return f"every optimizer takes them; Adafactor adds up its sums over processes by {by}"


# Arguments that the command sets itself, so they cannot be given as settings.
OPTIONS = {
    "name": "the first argument",
    "optimizer": "made by the command",
    "lr": "set by --lr",
    "num_training_steps": "set by --steps",
    "num_warmup_steps": "set by --warmup",
    "warmup_ratio": "set by --warmup",
    "steps": "set by --steps",
    "last_epoch": "-1 here, as values start at step 0",
}


def schedule(
    name: str, steps: int, lr: float, warmup: float, every: int, settings: list[str]
) -> str:
    """A line for each step: its number, the learning rate, and the loss if the schedule uses
    one."""
    find(name)
    if steps < 1:
        raise ValueError(f"--steps should be 1 or more but is: {steps}")
    if every < 1:
        raise ValueError(f"--every should be 1 or more but is: {every}")
    given: dict[str, Any] = {"num_warmup_steps": warmup}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"a setting should look like num_cycles=2 but is: {setting!r}")
        if key in OPTIONS:
            raise ValueError(f"{key} is {OPTIONS[key]}, not a setting")
        given[key] = value
    values = trace(name, steps, steps, lr, **given)
    follows = name in METRIC_CLASSES
    lines = ["step lr" + (" example_loss" if follows else "")]
    for step in range(0, steps, every):
        loss = f" {example_loss(step, steps):.6g}" if follows else ""
        lines.append(f"{step} {values[step]:.9g}{loss}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fusedstep")
    commands = parser.add_subparsers(dest="command", required=True)
    facts = commands.add_parser("info", help="the backends, and why one is absent")
    facts.add_argument("--version", action="store_true", help="only the version of fusedstep")

    values = commands.add_parser("schedule", help="the values of a schedule, a line for each step")
    values.add_argument("name", help="transformers' name (cosine) or a config's (OneCycleLR)")
    values.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="of the schedule")
    values.add_argument("--steps", type=int, required=True, help="num_training_steps")
    values.add_argument(
        "--warmup", type=float, default=0.0, help="steps; below 1 a share of --steps (default: 0)"
    )
    values.add_argument("--lr", type=float, default=1.0, help="of the optimizer (default: 1)")
    values.add_argument("--every", type=int, default=1, help="print only every N-th step")

    picture = commands.add_parser("plot-schedules", help="a picture of schedules")
    picture.add_argument("names", nargs="*", metavar="NAME", help="by default all")
    picture.add_argument("--out", default="schedules.png", help="the file (default: %(default)s)")
    picture.add_argument("--steps", type=int, default=1000, help="length of a run (default: 1000)")
    picture.add_argument("--warmup", type=float, default=0.1, help="as above (default: 0.1)")

    change = commands.add_parser("convert", help="a checkpoint for another package's optimizer")
    change.add_argument("source", help="a file with optimizer.state_dict()")
    change.add_argument("target", help="the file to write")
    change.add_argument("--to", choices=("torch", "transformers"), required=True)
    change.add_argument("--lossy", action="store_true", help="drop or start anew what differs")

    asked, rest = parser.parse_known_args()
    if asked.command == "schedule" and not any(word.startswith("-") for word in rest):
        asked.settings += rest  # argparse does not take settings that follow options
    elif rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    try:
        if asked.command == "info":
            print(__version__ if asked.version else info())
        elif asked.command == "schedule":
            print(
                schedule(
                    asked.name, asked.steps, asked.lr, asked.warmup, asked.every, asked.settings
                ),
                flush=True,
            )
        elif asked.command == "convert":
            print(convert_file(asked.source, asked.target, asked.to, asked.lossy))
        else:
            draw(asked.out, asked.names, steps=asked.steps, warmup=asked.warmup)
            print(f"saved {asked.out}")
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ArithmeticError, ImportError, OSError, TypeError, ValueError) as error:
        sys.exit(f"{parser.prog} {asked.command}: {error}")


if __name__ == "__main__":
    main()
