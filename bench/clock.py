"""Paired timing: contestants take turns, and rounds that other processes disturbed do not count."""

import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from bench.providers import reason

Step = Callable[[], object]

WARM_UP_STEPS = 2
FEWEST_ROUNDS, MOST_ROUNDS = 3, 15
# /proc/stat counts in ticks of 10 ms: a shorter sample could not tell a busy neighbour from none.
SAMPLE_SECONDS = 0.03
# Of one CPU, over a round.
TOLERATED_LOAD = 0.05
COPY_ELEMENTS = 1 << 26


@dataclass
class Outcome:
    """Seconds a step by contestant, one entry a round, so that entries of one index are a pair."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    rejected: int = 0
    disturbed: bool = False


def cpu_seconds_of_others() -> float | None:
    """CPU time used on this machine by everyone else since boot; None where nobody counts it."""
    try:
        with open("/proc/stat") as stat:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(
                int, stat.readline().split()[1:9]
            )
    except (OSError, ValueError):
        return None
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return busy - time.process_time()


def was_quiet(others_before: float | None, elapsed: float) -> bool:
    others_after = cpu_seconds_of_others()
    if others_before is None or others_after is None:
        return True
    # The kernel charges whole ticks, so each of our threads may leave one on the wrong account.
    rounding = torch.get_num_threads() / os.sysconf("SC_CLK_TCK")
    return others_after - others_before <= TOLERATED_LOAD * elapsed + rounding


def sample(step: Step, repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - begin) / repeats


def take_turns(
    steps: dict[str, Step],
    rounds: int | None,
    budget: float,
    on_round: Callable[[int, int, int], None],
) -> Outcome:
    """Run the steps in turns: `rounds` rounds, or as many as `budget` seconds allow.

    Every round starts with another contestant, so that none always inherits the same caches. Up to
    as many rounds again, or half the budget, replace those rejected; if most were, all are kept and
    called disturbed.
    """
    outcome = Outcome()
    steps, repeats, round_seconds = dict(steps), {}, 0.0

    def attempt(name: str, count: int) -> float | None:
        if name not in steps:
            return None
        try:
            return sample(steps[name], count)
        except Exception as error:  # a peer may raise anything, and the others still have to run
            outcome.failures[name] = reason(error)
            del steps[name]
            return None

    for name in list(steps):
        once = [seconds for _ in range(WARM_UP_STEPS) if (seconds := attempt(name, 1)) is not None]
        if name in steps:
            repeats[name] = max(1, math.ceil(SAMPLE_SECONDS / once[-1]))
            round_seconds += once[-1] * repeats[name]

    deadline = math.inf
    if rounds is None:
        deadline = time.perf_counter() + 1.5 * budget
        affordable = int(budget / round_seconds) if round_seconds else 0
        rounds = min(max(affordable, FEWEST_ROUNDS), MOST_ROUNDS)
    quiet: list[dict[str, float]] = []
    noisy: list[dict[str, float]] = []
    while steps and len(quiet) < rounds and len(quiet) + len(noisy) < 2 * rounds:
        if len(quiet) + len(noisy) >= FEWEST_ROUNDS and time.perf_counter() > deadline:
            break
        on_round(len(quiet) + 1, rounds, len(noisy))
        names = list(steps)
        first = (len(quiet) + len(noisy)) % len(names)
        others, begin = cpu_seconds_of_others(), time.perf_counter()
        taken = {}
        for name in names[first:] + names[:first]:
            if (seconds := attempt(name, repeats[name])) is not None:
                taken[name] = seconds
        calm = was_quiet(others, time.perf_counter() - begin)
        if len(taken) == len(names):
            (quiet if calm else noisy).append(taken)

    outcome.rejected = len(noisy)
    outcome.disturbed = len(noisy) > len(quiet)
    counted = quiet + noisy if outcome.disturbed else quiet
    outcome.seconds = {name: [taken[name] for taken in counted] for name in steps}
    return outcome


def copy_bandwidth(on_round: Callable[[int, int, int], None]) -> tuple[float, bool]:
    """Bytes a second, read and written, of one tensor's copy_ into another; and if disturbed."""
    source, target = torch.ones(COPY_ELEMENTS), torch.zeros(COPY_ELEMENTS)
    outcome = take_turns({"copy": lambda: target.copy_(source)}, MOST_ROUNDS, 0.0, on_round)
    moved = 2 * COPY_ELEMENTS * source.itemsize
    return moved / statistics.median(outcome.seconds["copy"]), outcome.disturbed
