"""One race: every provider on its own copy of the list, in turns, in a process of its own."""

import sys
import time
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch

from bench.clock import Outcome, take_turns
from bench.devices import DEVICES, Step
from bench.lists import DTYPES, parameters
from bench.providers import RULES, Race, reason


@dataclass(frozen=True)
class Options:
    rounds: int | None
    budget: float  # seconds
    threads: int | None
    device: str

    def set_threads(self) -> None:
        if self.threads:
            torch.set_num_threads(self.threads)


class Progress:
    """One line a race on stderr; on a terminal the line also counts its rounds."""

    def __init__(self, title: str) -> None:
        self.title, self.live, self.begin = title, sys.stderr.isatty(), time.perf_counter()
        self.show("preparing")

    def show(self, state: str) -> None:
        if self.live:
            print(f"\r\x1b[K{self.title}  {state}", end="", file=sys.stderr, flush=True)

    def on_round(self, number: int, rounds: int, rejected: int) -> None:
        self.show(f"round {number} of {rounds}, {rejected} rejected")

    def done(self, summary: str) -> None:
        erase = "\r\x1b[K" if self.live else ""
        spent = time.perf_counter() - self.begin
        print(f"{erase}{self.title}  {summary}  ({spent:.1f} s)", file=sys.stderr, flush=True)


def run_apart(race: Race, options: Options, progress: Progress) -> Outcome:
    """A race in a process of its own. What earlier races leave in the allocator decides whether a
    peer's temporaries are new pages at each step, which changes its time by a factor of two. And a
    kernel that fails leaves nothing on a GPU that another race could use."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    apart = context.Process(target=run_and_send, args=(sender, race, options, progress))
    apart.start()
    sender.close()
    try:
        limit = DEVICES[options.device].race_seconds
        if receiver.poll(limit):
            return receiver.recv()
        note = f"failed: given up after {limit:.0f} s"
    except EOFError:
        apart.join()
        note = f"failed: its process ended with status {apart.exitcode}"
    finally:
        apart.kill()
        apart.join()
    return Outcome(failures=dict.fromkeys(race.names, note))


def run_and_send(sender: Connection, race: Race, options: Options, progress: Progress) -> None:
    try:
        outcome = run(race, options, progress)
    except KeyboardInterrupt:  # the parent was told, too
        return
    except Exception as error:  # a list that does not fit, for one
        outcome = Outcome(failures=dict.fromkeys(race.names, reason(error)))
    sender.send(outcome)


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
    outcome = take_turns(steps, options.rounds, options.budget, device, progress.on_round)
    outcome.failures |= failures
    return outcome
