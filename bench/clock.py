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
# /proc/stat counts in ticks of 10 ms: a shorter sample could not tell a busy neighbour from none.
SAMPLE_SECONDS = 0.03


@dataclass
class Outcome:
    """Seconds a step by contestant, one entry a round, so that entries of one index are a pair."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
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
    """Run the steps in turns: `rounds` rounds, or as many as `budget` seconds allow.

    Every round starts with another contestant, so that none always inherits the same caches. Up to
    as many rounds again, or half the budget, replace those rejected; if most were, all are kept and
    called disturbed.
    """
    outcome = Outcome()
    steps, repeats, round_seconds = dict(steps), {}, 0.0

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
        once = [taken for _ in range(WARM_UP_STEPS) if (taken := attempt(name, 1)) is not None]
        if name in steps:
            repeats[name] = max(1, math.ceil(SAMPLE_SECONDS / once[-1].seconds))
            round_seconds += once[-1].seconds * repeats[name]

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
        taken = {}
        for name in names[first:] + names[:first]:
            if (sample := attempt(name, repeats[name])) is not None:
                taken[name] = sample
        calm = was_quiet()
        if len(taken) == len(names):
            (quiet if calm else noisy).append(taken)

    outcome.rejected = len(noisy)
    outcome.disturbed = len(noisy) > len(quiet)
    counted = quiet + noisy if outcome.disturbed else quiet
    outcome.seconds = {name: [taken[name].seconds for taken in counted] for name in steps}
    for name in steps:
        on_host = [host for taken in counted if (host := taken[name].host_seconds) is not None]
        if on_host:
            outcome.host_seconds[name] = on_host
    return outcome


def copy_bandwidth(device: Device, on_round: Callable[[int, int, int], None]) -> tuple[float, bool]:
    """Bytes a second, read and written, of one tensor's copy_ into another; and if disturbed."""
    source = torch.ones(device.copy_elements, device=device.kind)
    target = torch.zeros(device.copy_elements, device=device.kind)
    steps = {"copy": lambda: target.copy_(source)}
    outcome = take_turns(steps, MOST_ROUNDS, 0.0, device, on_round)
    moved = 2 * source.nbytes
    return moved / statistics.median(outcome.seconds["copy"]), outcome.disturbed
