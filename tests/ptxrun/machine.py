"""run(): interleaves CTAs as coroutines, in order or at random, until all have ended."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import (  # noqa: F401  each adds its instructions to the table
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

STALE_TURNS = 8  # after so many turns without a change of memory we take a CTA's snapshot
PATIENCE = 1_000_000  # after so many turns without a change of memory we report a deadlock


def three(size: int | Sequence[int]) -> tuple[int, int, int]:
    sizes = (size,) if isinstance(size, int) else tuple(int(n) for n in size)
    x, y, z = (*sizes, 1, 1, 1)[:3]
    return x, y, z


def parameter_bytes(kernel: Kernel, args: Sequence[Any]) -> NDArray[np.uint8]:
    """Places the arguments (numpy scalars, arrays, structs or bytes) at their offsets."""
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
    """A CTA that takes turns with others, and whether it is stuck."""

    def __init__(self, begin: Callable[[], Cta]) -> None:
        self._begin = begin
        self._turns: Iterator[bool] | None = None
        self.cta: Cta | None = None
        self.changed()

    def changed(self) -> None:
        """Called when global memory has changed: the CTA may get on now."""
        self._snapshot: tuple[Any, ...] | None = None
        self._stale = 0
        self.stuck = False

    def take_turn(self) -> bool | None:
        """Runs to the next place where others may go first. Returns True before a strong access,
        False at a barrier, None at the end.

        The registers are made in the first turn, so that few CTAs have any at a time.
        """
        if self._turns is None:
            self.cta = self._begin()
            self._turns = self.cta.run()
        return next(self._turns, None)

    def look_for_standstill(self) -> None:
        """Marks the CTA as stuck if its state repeats while memory stays the same: it would repeat
        for ever."""
        assert self.cta is not None
        self._stale += 1
        if self._snapshot is not None and self.cta.equals(self._snapshot):
            self.stuck = True
        elif self._stale % STALE_TURNS == 0:
            self._snapshot = self.cta.snapshot()


def run_all(begins: Iterable[Callable[[], Cta]], schedule: int | None, resident: int) -> None:
    """Lets CTAs take turns until all have ended."""
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
    """Executes a kernel and returns the counts.

    `args` are numpy scalars, arrays or bytes, each exactly as large as its parameter. `shared` is
    the size of dynamic shared memory in bytes. CTAs switch before atomics and strong accesses, in
    order of their numbers. If `schedule` is a seed, they switch at random, at barriers too. At most
    `resident` CTAs are under way at a time, as on a GPU. `between_threads` also finds races between
    threads of one CTA in global memory, even if the racing value is never used.
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
    """The decoded kernel, cached for its next launch with this block and shared size."""
    key = (block, shared)
    if key not in kernel.programs:
        kernel.programs[key] = Program(kernel, block, shared)
    return kernel.programs[key]
