"""Races: the providers take turns in one process, each on its own copy of the list."""

from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import torch

from bench.apart import Failed, one_by_one
from bench.clock import Outcome, take_turns
from bench.devices import DEVICES, Step
from bench.extra import extra_bytes, launches
from bench.floor import FLOOR, Floor
from bench.lists import DTYPES, parameters
from bench.optimizers import RULES
from bench.progress import Progress
from bench.providers import Race, reason


@dataclass(frozen=True)
class Options:
    rounds: int | None  # 0: nothing is timed; None: as many as the budget allows
    budget: float  # seconds
    threads: int | None
    device: str
    extras: bool = True  # also count launches and memory

    def set_threads(self) -> None:
        if self.threads:
            torch.set_num_threads(self.threads)


def run_apart(titled: list[tuple[str, Race]], options: Options) -> Generator[Outcome, None, None]:
    """The outcome of each race. Each has a process of its own. On some devices races share one, as
    long as it works."""
    device, left = DEVICES[options.device], list(titled)
    while left:
        together = left if device.shares_process else left[:1]
        with closing(one_by_one(outcomes, (together, options), device.race_seconds)) as process:
            for _, race in together:
                try:
                    outcome = next(process)
                except (Failed, StopIteration) as error:  # for example, a list that does not fit
                    why = str(error) or "failed: its process ended"
                    outcome = Outcome(failures=dict.fromkeys(race.names, why))
                left = left[1:]
                yield outcome
                if race is not together[-1][1] and not is_ready(process):
                    break


def is_ready(process: Iterator[Any]) -> bool:
    """Whether the process can run another race. If it has ended, that is no failure of a race."""
    try:
        return bool(next(process, False))
    except Failed:
        return False


def outcomes(titled: list[tuple[str, Race]], options: Options) -> Iterator[Outcome | bool]:
    """Runs the races in this process. After each outcome it says whether another race can follow:
    after a kernel has failed, nothing else runs on a GPU."""
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
        except Exception as error:  # a provider that cannot be built gets a row with the reason
            failures[name] = reason(error)
    if steps and device.measures_floor:
        try:
            steps[FLOOR] = Floor(values, RULES[race.rule].rule)
        except Exception as error:  # without the C++ module the others can still race
            failures[FLOOR] = reason(error)
    del values
    held_bytes = race.chosen.held_bytes(RULES[race.rule].rule, DTYPES[race.dtype])
    device.prepare(held_bytes, race.chosen.host_bound)
    outcome = take_turns(steps, options.rounds, options.budget, device, progress.on_round)
    outcome.floor_seconds = outcome.seconds.pop(FLOOR, [])
    outcome.failures |= failures
    for name in outcome.seconds if options.extras else ():
        with suppress(Exception):  # a provider that we cannot profile keeps its time
            outcome.launches[name] = launches(steps[name], device.kind)
            outcome.extra_bytes[name] = extra_bytes(steps[name], device.kind)
    return outcome
