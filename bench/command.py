"""What the commands share: options, checks at the door, and the files that they write."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.devices import DEVICES, Device
from bench.environment import environment, headline
from bench.optimizers import INSTALLED, PROVIDERS, RULES
from bench.providers import OURS


def positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def command_options(
    name: str,
    description: str | None,
    providers: Iterable[str] = PROVIDERS,
    rules: Iterable[str] = RULES,
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(f"python -m bench.{name}", description=description)
    add = parser.add_argument
    add("--device", choices=DEVICES, default="cpu")
    add("--rules", nargs="+", choices=RULES, default=list(rules))
    add("--providers", nargs="+", choices=("installed", *PROVIDERS), default=list(providers))
    add("--out", type=Path, help="default: bench/out, and bench/out/cuda")
    return parser


def checked(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Device]:
    """The arguments, if this machine can do what they ask for."""
    asked = parser.parse_args()
    if "installed" in asked.providers:
        asked.providers = [*asked.providers, *INSTALLED]
    device = DEVICES[asked.device]
    if device.why_absent():
        parser.exit(1, f"--device {asked.device}: {device.why_absent()}\n")
    if not any(names_of(rule, asked) for rule in asked.rules):
        names = [name for rule in asked.rules for name in providers_of(rule, asked.device)]
        possible = ", ".join(dict.fromkeys(names))
        parser.error(f"--providers: on {asked.device} these rules have {possible}")
    if OURS in asked.providers:
        try:
            import_module(OURS)
        except ImportError as error:
            parser.exit(1, f"cannot import fusedstep ({error}): run pip install -e . first\n")
    return asked, device


def providers_of(rule: str, kind: str) -> tuple[str, ...]:
    return tuple(RULES[rule].providers_on(kind))


def names_of(rule: str, asked: argparse.Namespace) -> tuple[str, ...]:
    """The providers of a rule that were asked for, ours first."""
    return tuple(name for name in providers_of(rule, asked.device) if name in asked.providers)


class Report:
    """The files NAME.json, NAME.md and NAME.png. They are written again whenever something is
    finished, because what comes later may kill the process."""

    def __init__(self, name: str, asked: argparse.Namespace, device: Device) -> None:
        default = Path(__file__).parent / "out" / ("" if device.kind == "cpu" else device.kind)
        self.name, self.device = name, device
        self.out: Path = asked.out or default
        self.out.mkdir(parents=True, exist_ok=True)
        command = shlex.join(["python", "-m", f"bench.{name}", *sys.argv[1:]])
        self.facts = environment(command, device)
        self.interrupted = False

    def headline(self, copy: float | None = None) -> str:
        return headline(self.facts, copy, self.device)

    def write(self, page: str, rows: list[dict[str, Any]], **numbers: Any) -> None:
        results = {
            "environment": self.facts,
            **numbers,
            "interrupted": self.interrupted,
            "rows": rows,
        }
        (self.out / f"{self.name}.json").write_text(json.dumps(results, indent=1) + "\n")
        (self.out / f"{self.name}.md").write_text(page)

    def finish(self, page: str, draw: Callable[[Path], None]) -> None:
        """Prints the page, and draws the picture if matplotlib is installed."""
        print(page)
        written = [f"{self.name}.json", f"{self.name}.md"]
        try:
            draw(self.out / f"{self.name}.png")
            written.append(f"{self.name}.png")
        except ImportError:
            print("matplotlib is not installed: no picture", file=sys.stderr)
        print(f"written: {', '.join(written)} in {self.out}", file=sys.stderr)

    def interrupt(self) -> None:
        self.interrupted = True
        print("\ninterrupted: only finished results follow", file=sys.stderr)
