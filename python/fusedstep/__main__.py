"""`python -m fusedstep COMMAND`: what is installed here, and what a schedule will do."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from typing import Any

import torch

from . import __version__, backends
from .schedules.by_name import METRIC_CLASSES, find
from .schedules.draw import draw
from .schedules.trace import example_loss, trace


def info() -> str:
    """Versions, and a line for each backend in the order in which `auto` prefers them."""
    python = platform.python_version()
    lines = [f"fusedstep {__version__}, torch {torch.__version__}, Python {python}"]
    for name, backend in backends.BACKENDS.items():
        reason = backend.why_absent()
        lines.append(f"  {name:10} " + (f"absent: {reason}" if reason else backend.describe()))
    for device in ("cpu", "cuda", "xpu", "mps"):
        try:
            running = backends.choose("auto", torch.device(device), f"a tensor on {device}")
            lines.append(f"{device} tensors: auto takes {running.name}")
        except ValueError as error:  # a variable of the environment is wrong
            lines.append(f"{device} tensors: {error}")
    return "\n".join(lines)


# What `schedule` says of a run by itself.
OPTIONS = {
    "name": "the first word",
    "optimizer": "made here",
    "lr": "said by --lr",
    "num_training_steps": "said by --steps",
    "num_warmup_steps": "said by --warmup",
    "warmup_ratio": "said by --warmup",
    "steps": "said by --steps",
    "last_epoch": "-1 here: values are those from the beginning",
}


def schedule(
    name: str, steps: int, lr: float, warmup: float, every: int, settings: list[str]
) -> str:
    """A line for each step: its number, the learning rate, and the loss if the schedule follows
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
            raise ValueError(f"a setting should be as in num_cycles=2 but is: {setting!r}")
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
    commands.add_parser("info", help="backends, and why one is absent")

    values = commands.add_parser("schedule", help="the values of a schedule, a line for each step")
    values.add_argument("name", help="transformers' name (cosine) or a config's (OneCycleLR)")
    values.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="its own arguments")
    values.add_argument("--steps", type=int, required=True, help="num_training_steps")
    values.add_argument(
        "--warmup", type=float, default=0.0, help="steps, or below 1 a share of all (default: 0)"
    )
    values.add_argument("--lr", type=float, default=1.0, help="the optimizer's (default: 1)")
    values.add_argument("--every", type=int, default=1, help="print every so many steps")

    picture = commands.add_parser("plot-schedules", help="a picture of schedules")
    picture.add_argument("names", nargs="*", metavar="NAME", help="by default all")
    picture.add_argument("--out", default="schedules.png", help="where to (default: %(default)s)")
    picture.add_argument("--steps", type=int, default=1000, help="of training (default: 1000)")
    picture.add_argument("--warmup", type=float, default=0.1, help="as above (default: 0.1)")

    asked, rest = parser.parse_known_args()
    if asked.command == "schedule" and not any(word.startswith("-") for word in rest):
        asked.settings += rest  # settings after options, which argparse does not expect there
    elif rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    try:
        if asked.command == "info":
            print(info())
        elif asked.command == "schedule":
            print(
                schedule(
                    asked.name, asked.steps, asked.lr, asked.warmup, asked.every, asked.settings
                ),
                flush=True,
            )
        else:
            draw(asked.out, asked.names, steps=asked.steps, warmup=asked.warmup)
            print(f"saved {asked.out}")
    except BrokenPipeError:  # who reads it, as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ArithmeticError, ImportError, OSError, TypeError, ValueError) as error:
        sys.exit(f"{parser.prog} {asked.command}: {error}")


if __name__ == "__main__":
    main()
