"""One race of `python -m bench.sharded`: what each of its processes does."""

import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from bench.collectives import counted
from bench.devices import cpu_seconds_of_others
from bench.lists import ParameterList
from bench.providers import OURS, reason
from bench.sharded_ways import Step, prepared, sharded_parameters, ways_of
from bench.table import paired_ratio

WARM_UP_STEPS = 2
SAMPLE_SECONDS = 0.1  # of one sample, so that starting together takes a small part of it
PATIENCE = timedelta(seconds=120)  # then a process that waits for the others gives up
TOLERATED_LOAD = 0.05  # of one CPU by processes that are not in the race


@dataclass(frozen=True)
class ShardedRace:
    rule: str
    chosen: ParameterList
    dtype: str
    processes: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.rule} {self.chosen.name} {self.dtype}, {self.processes} processes"


@dataclass
class Way:
    """What was found about one way to take the step. Seconds with the same index are from one
    round, and those of the process that took longest."""

    seconds: list[float] = field(default_factory=list)
    collectives: int = 0
    bytes: int = 0
    failure: str = ""


@dataclass
class Found:
    ways: dict[str, Way]
    # What our messages are, by the layout that all processes agreed on: numbers in each of them.
    messages: list[int]
    disturbed: int = 0  # rounds in which other processes used the CPU


@contextmanager
def together(rank: int, meeting: str, processes: int) -> Iterator[None]:
    """This process and others, which meet at a file. Each has one thread."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=processes,
        timeout=PATIENCE,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def work(rank: int, meeting: str, race: ShardedRace, rounds: int) -> Found:
    """The work of one process of a race. The first one's result has everything."""
    with together(rank, meeting, race.processes):
        return measure(race, rounds)


def measure(race: ShardedRace, rounds: int) -> Found:
    mesh = init_device_mesh("cpu", (race.processes,))
    found = Found({name: Way() for name in race.names}, [])
    steps: dict[str, Step] = {}
    repeats: dict[str, int] = {}
    for name in race.names:
        params = sharded_parameters(race.chosen, race.dtype, mesh)
        try:  # a peer raises in all processes alike
            optimizer, step = prepared(name, ways_of(race.rule)[name], params)
            single = [_sample(step, 1) for _ in range(WARM_UP_STEPS)][-1]
        except Exception as error:
            found.ways[name].failure = reason(error)
            continue
        steps[name] = step
        repeats[name] = max(1, math.ceil(SAMPLE_SECONDS / single))
        collectives = counted(step)
        found.ways[name].collectives = collectives.number
        found.ways[name].bytes = collectives.bytes
        if name == OURS and (layout := getattr(optimizer, "_layout", None)) is not None:
            found.messages = [message.length for message in layout.messages]
    for number in range(rounds if steps else 0):
        names = list(steps)
        first = number % len(names)
        busy, own = _busy(), time.process_time()
        begin = time.perf_counter()
        for name in names[first:] + names[:first]:
            found.ways[name].seconds.append(_sample(steps[name], repeats[name]))
        elapsed = time.perf_counter() - begin
        of_all = _over_all(time.process_time() - own, dist.ReduceOp.SUM)
        found.disturbed += _busy() - busy - of_all > TOLERATED_LOAD * elapsed
    return found


def _sample(step: Step, repeats: int) -> float:
    """Seconds of a step in the process that took longest."""
    dist.barrier()
    begin = time.perf_counter()
    for _ in range(repeats):
        step()
    return _over_all((time.perf_counter() - begin) / repeats, dist.ReduceOp.MAX)


def _over_all(value: float, how: Any) -> float:
    number = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(number, op=how)
    return float(number)


def _busy() -> float:
    """CPU time that all processes used since boot."""
    return (cpu_seconds_of_others() or 0.0) + time.process_time()


@dataclass(frozen=True)
class ShardedRow:
    rule: str
    list: str
    dtype: str
    processes: int
    provider: str
    parameters: int
    elements: int
    collectives: int | None = None
    bytes: int | None = None
    ms: float | None = None
    quartiles_ms: tuple[float, float] | None = None
    ratio: float | None = None
    rounds: int = 0
    disturbed: int = 0
    note: str = ""


def rows_of(race: ShardedRace, found: Found) -> list[ShardedRow]:
    ours = found.ways[OURS].seconds if OURS in found.ways else None
    rows = []
    for name, way in found.ways.items():
        who = (race.rule, race.chosen.name, race.dtype, race.processes, name)
        size = (len(race.chosen.shapes), race.chosen.elements)
        if not way.seconds:
            rows.append(ShardedRow(*who, *size, note=way.failure))
            continue
        low, median, high = statistics.quantiles(way.seconds * 2, method="inclusive")
        rows.append(
            ShardedRow(
                *who,
                *size,
                collectives=way.collectives,
                bytes=way.bytes,
                ms=median * 1e3,
                quartiles_ms=(low * 1e3, high * 1e3),
                ratio=paired_ratio(way.seconds, ours),
                rounds=len(way.seconds),
                disturbed=found.disturbed,
            )
        )
    return rows
