"""run(): CTAs as interleaved coroutines, in turns or at random, until all have ended."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import (  # noqa: F401  each enters its instructions into the table
    access,
    arithmetic,
    atomics,
    bits,
    control,
    convert,
    counts,
    integers,
    matrices,
    warps,
)
from .cta import Cta
from .cta_races import CtaRaces
from .faults import Fault
from .memory import Memory
from .parse import Kernel
from .program import Program
from .thread_races import ThreadRaces

STALE_TURNS = 8  # turns without any change of memory after which a CTA is looked at
PATIENCE = 1_000_000  # turns without any change of memory after which nothing is expected any more


def three(size: int | Sequence[int]) -> tuple[int, int, int]:
    sizes = (size,) if isinstance(size, int) else tuple(int(n) for n in size)
    x, y, z = (*sizes, 1, 1, 1)[:3]
    return x, y, z


def parameter_bytes(kernel: Kernel, args: Sequence[Any]) -> NDArray[np.uint8]:
    """Arguments (numpy scalars, arrays, structs or bytes) at their offsets."""
    buffer = np.zeros(kernel.layouts["param"].size + 16, np.uint8)
    if len(args) != len(kernel.params):
        raise Fault(f"{kernel.name} takes {len(kernel.params)} arguments, got {len(args)}")
    for (name, offset, size), value in zip(kernel.params, args, strict=True):
        raw = value.tobytes() if hasattr(value, "tobytes") else bytes(value)
        if len(raw) != size:
            raise Fault(f"argument {name} has {size} bytes, got {len(raw)}")
        buffer[offset : offset + size] = np.frombuffer(raw, np.uint8)
    return buffer


class Resident:
    """A CTA that may take its turn, and what is known of its standstill."""

    def __init__(self, begin: Callable[[], Cta]) -> None:
        self._begin = begin
        self._turns: Iterator[bool] | None = None
        self.cta: Cta | None = None
        self.changed()

    def changed(self) -> None:
        """Global memory is another than before."""
        self._snapshot: tuple[Any, ...] | None = None
        self._stale = 0
        self.stuck = False

    def take_turn(self) -> bool | None:
        """Run to the next place where others may go first: True before an access, None at the end.

        Registers come into being with the first turn, so that few are held at a time.
        """
        if self._turns is None:
            self.cta = self._begin()
            self._turns = self.cta.run()
        return next(self._turns, None)

    def look_for_standstill(self) -> None:
        """A state that comes back while memory stays the same comes back for ever."""
        assert self.cta is not None
        self._stale += 1
        if self._snapshot is not None and self.cta.equals(self._snapshot):
            self.stuck = True
        elif self._stale % STALE_TURNS == 0:
            self._snapshot = self.cta.snapshot()


def run_all(begins: Iterable[Callable[[], Cta]], schedule: int | None, resident: int) -> None:
    """Let CTAs take turns until all have ended."""
    chance = None if schedule is None else random.Random(schedule)
    coming = list(begins)
    if chance is not None:
        chance.shuffle(coming)
    coming.reverse()
    running: deque[Resident] = deque()
    quiet = 0
    while coming or running:
        while coming and len(running) < resident:
            running.append(Resident(coming.pop()))
        if chance is not None:
            running.rotate(chance.randrange(len(running)))
        one = running[0]
        before = one.cta.progress if one.cta else 0
        outcome = one.take_turn()
        assert one.cta is not None
        if outcome is None:
            running.popleft()
        elif outcome and chance is None:
            running.rotate(-1)
        if outcome is None or one.cta.progress != before:
            quiet = 0
            for other in running:
                other.changed()
        elif outcome:
            quiet += 1
            one.look_for_standstill()
            if quiet > PATIENCE or (one.stuck and all(other.stuck for other in running)):
                raise Fault(
                    f"deadlock: {len(running)} CTAs are under way and none gets anywhere, "
                    f"{len(coming)} have not begun; the last: CTA {one.cta.position}, "
                    f"instruction `{one.cta.program.steps[one.cta.place].text}`"
                )


def run(
    kernel: Kernel,
    grid: int | Sequence[int],
    threads: int | Sequence[int],
    args: Sequence[Any],
    memory: Memory,
    shared: int = 0,
    schedule: int | None = None,
    resident: int = 256,
    between_threads: bool = True,
) -> Counter[str]:
    """Execute a kernel; returns what was counted.

    `args` are numpy scalars, arrays or bytes of exactly the parameters' sizes, `shared` the bytes
    of dynamic shared memory. CTAs give way to each other before atomics and strong accesses: in
    order of their numbers, or at random, also at barriers, if `schedule` is a seed. At most
    `resident` of them are under way at a time, as on a GPU. `between_threads` also looks for races
    of one CTA's threads in global memory; those count where the value that comes too late is never
    used, too.
    """
    sizes, block = three(grid), three(threads)
    program = decoded(kernel, block, shared)
    params = parameter_bytes(kernel, args)
    positions = [
        (x, y, z) for z in range(sizes[2]) for y in range(sizes[1]) for x in range(sizes[0])
    ]
    names = [f"CTA {position}" for position in positions]
    program.begin_counting()
    for name, table in kernel.tables.items():
        memory.add_once(table, name)
    races = CtaRaces(len(positions), program.threads, program.global_granule, names)
    thread_races = ThreadRaces(program.global_granule) if between_threads else None
    known: dict[int, NDArray[np.int32]] = {}
    begins = [
        partial(Cta, program, number, position, sizes, memory, races, thread_races, known, params)
        for number, position in enumerate(positions)
    ]
    with np.errstate(all="ignore"):
        run_all(begins, schedule, resident)
    return program.counted()


def decoded(kernel: Kernel, block: tuple[int, int, int], shared: int) -> Program:
    """The kernel's steps, kept for its next launch of this size."""
    key = (block, shared)
    if key not in kernel.programs:
        kernel.programs[key] = Program(kernel, block, shared)
    return kernel.programs[key]
