"""Paired timing: contestants take turns, and rounds that other processes disturbed do not count."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from bench.devices import Device, Sample, Step
from bench.providers import reason

WARM_UP_STEPS = 2
FEWEST_ROUNDS, MOST_ROUNDS = 3, 15
# /proc/stat counts in ticks of 10 ms, so a shorter sample could not show that a neighbour is busy.
SAMPLE_SECONDS = 0.03


@dataclass
class Outcome:
    """Seconds of a step for each contestant. Entries with the same index are from one round."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    floor_seconds: list[float] = field(default_factory=list)  # empty: the floor was not measured
    host_seconds: dict[str, list[float]] = field(default_factory=dict)
    launches: dict[str, int] = field(default_factory=dict)
    extra_bytes: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    rejected: int = 0
    disturbed: bool = False


def take_turns(
    steps: dict[str, Step],
    rounds: int | None,
    budget: float,
    device: Device,
    on_round: Callable[[int, int, int], None],
) -> Outcome:
    """Runs the steps in turns: `rounds` rounds, or as many as `budget` seconds allow.

    Every round starts with another contestant, so that none always finds the same caches. Rejected
    rounds are run again, for at most as many rounds, or half the budget, more. If most rounds were
    rejected, all of them count and the race is called disturbed.
    """
    outcome = Outcome()
    steps = dict(steps)
    repeats: dict[str, int] = {}
    round_seconds = 0.0

    def attempt(name: str, count: int) -> Sample | None:
        if name not in steps:
            return None
        try:
            return device.sample(steps[name], count)
        except Exception as error:  # a peer may raise anything, and the others still have to run
            outcome.failures[name] = reason(error)
            del steps[name]
            return None

    for name in list(steps):
        single = None
        for _ in range(WARM_UP_STEPS):
            single = attempt(name, 1)
        if single is not None:
            repeats[name] = max(1, math.ceil(SAMPLE_SECONDS / single.seconds))
            round_seconds += single.seconds * repeats[name]

    deadline = math.inf
    if rounds is None:
        deadline = time.perf_counter() + 1.5 * budget
        affordable = int(budget / round_seconds) if round_seconds else 0
        rounds = min(max(affordable, FEWEST_ROUNDS), MOST_ROUNDS)
    quiet: list[dict[str, Sample]] = []
    noisy: list[dict[str, Sample]] = []
    while steps and len(quiet) < rounds and len(quiet) + len(noisy) < 2 * rounds:
        if len(quiet) + len(noisy) >= FEWEST_ROUNDS and time.perf_counter() > deadline:
            break
        on_round(len(quiet) + 1, rounds, len(noisy))
        names = list(steps)
        first = (len(quiet) + len(noisy)) % len(names)
        was_quiet = device.watch()
        samples: dict[str, Sample] = {}
        for name in names[first:] + names[:first]:
            if (sample := attempt(name, repeats[name])) is not None:
                samples[name] = sample
        undisturbed = was_quiet()
        if len(samples) == len(names):  # a round in which somebody failed is no round
            (quiet if undisturbed else noisy).append(samples)

    outcome.rejected = len(noisy)
    outcome.disturbed = len(noisy) > len(quiet)
    counted = quiet + noisy if outcome.disturbed else quiet
    outcome.seconds = {name: [samples[name].seconds for samples in counted] for name in steps}
    for name in steps:
        on_host = [host for samples in counted if (host := samples[name].host_seconds) is not None]
        if on_host:
            outcome.host_seconds[name] = on_host
    return outcome


def copy_bandwidth(device: Device, on_round: Callable[[int, int, int], None]) -> tuple[float, bool]:
    """Bytes a second that copy_ reads and writes, and whether the measurement was disturbed."""
    source = torch.ones(device.copy_elements, device=device.kind)
    target = torch.zeros(device.copy_elements, device=device.kind)
    steps: dict[str, Step] = {"copy": lambda: target.copy_(source)}
    outcome = take_turns(steps, MOST_ROUNDS, 0.0, device, on_round)
    return 2 * source.nbytes / statistics.median(outcome.seconds["copy"]), outcome.disturbed
