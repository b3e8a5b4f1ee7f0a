"""Races: every provider on its own copy of the list, in turns, in processes of their own."""

from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import torch

from bench.apart import Failed, one_by_one
from bench.clock import Outcome, take_turns
from bench.devices import DEVICES, Step
from bench.extra import extra_bytes, launches
from bench.lists import DTYPES, parameters
from bench.optimizers import RULES
from bench.progress import Progress
from bench.providers import Race, reason


@dataclass(frozen=True)
class Options:
    rounds: int | None  # 0: none is timed
    budget: float  # seconds
    threads: int | None
    device: str
    extras: bool = True  # count launches and memory, too

    def set_threads(self) -> None:
        if self.threads:
            torch.set_num_threads(self.threads)


def run_apart(titled: list[tuple[str, Race]], options: Options) -> Iterator[Outcome]:
    """Of each race, in a process of its own, or on some devices in one that they share as long as
    it can be used."""
    device, left = DEVICES[options.device], list(titled)
    while left:
        together = left if device.shares_process else left[:1]
        with closing(one_by_one(outcomes, (together, options), device.race_seconds)) as process:
            for _, race in together:
                try:
                    outcome = next(process)
                except (Failed, StopIteration) as error:  # a list that does not fit, for one
                    why = str(error) or "failed: its process ended"
                    outcome = Outcome(failures=dict.fromkeys(race.names, why))
                left = left[1:]
                yield outcome
                if race is not together[-1][1] and not is_ready(process):
                    break


def is_ready(process: Iterator[Any]) -> bool:
    """Whether it can go on with another race; if it ended, no race is to blame."""
    try:
        return bool(next(process, False))
    except Failed:
        return False


def outcomes(titled: list[tuple[str, Race]], options: Options) -> Iterator[Outcome | bool]:
    """In this process: of each race, and then whether there can be another. A kernel that fails
    leaves nothing on a GPU that others could use."""
    for title, race in titled:
        yield run(race, options, Progress(title))
        try:
            DEVICES[options.device].release_memory()
        except RuntimeError:
            yield False
            return
        yield True


def run(race: Race, options: Options, progress: Progress) -> Outcome:
    options.set_threads()
    device = DEVICES[options.device]
    values = race.chosen.tensors(DTYPES[race.dtype], device.kind)
    builds = RULES[race.rule].providers_on(device.kind)
    steps: dict[str, Step] = {}
    failures: dict[str, str] = {}
    for name in race.names:
        try:
            steps[name] = builds[name](parameters(values)).step
        except Exception as error:  # a provider that cannot be made is a row of its own
            failures[name] = reason(error)
    del values
    kind = (RULES[race.rule].rule, DTYPES[race.dtype])
    device.prepare(race.chosen.held_bytes(*kind), race.chosen.host_bound)
    outcome = take_turns(steps, options.rounds, options.budget, device, progress.on_round)
    outcome.failures |= failures
    for name in outcome.seconds if options.extras else ():
        with suppress(Exception):  # who cannot be looked at keeps the time, without these numbers
            outcome.launches[name] = launches(steps[name], device.kind)
            outcome.extra_bytes[name] = extra_bytes(steps[name], device.kind)
    return outcome
