"""Finds conflicting accesses of two CTAs to global memory without a release and acquire between.

Every CTA has a vector clock. A release publishes what its own thread did, and what the others of
its CTA did before their last barrier. What a thread acquires counts for the others of its CTA after
the next barrier. So a missing barrier before a release or after an acquire is found.

A granule is the smallest piece of memory that we track. Its state (weak writer, weak readers,
strong writers, strong readers) is interned as one integer, and transitions between states are
cached. So an access looks up a few distinct integers, however many lanes it has.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .faults import Fault

Clock = NDArray[np.int64]
Lanes = NDArray[np.int64]
Access = tuple[int, int]  # (CTA, epoch)

# Epochs between two barriers. Each release takes the next one; accesses that no release has
# published yet have the last one.
INTERVAL = 1 << 32
UNPUBLISHED = INTERVAL - 1


class Kind(IntEnum):
    """Kinds of access. Strong ones (atomic, volatile) do not conflict with each other."""

    WEAK_READ = 0
    WEAK_WRITE = 1
    STRONG_READ = 2
    STRONG_WRITE = 3
    STRONG_UPDATE = 4


class State(NamedTuple):
    """The accesses to a granule that a later one may conflict with."""

    writers: frozenset[Access] = frozenset()
    readers: frozenset[Access] = frozenset()
    strong_writers: frozenset[Access] = frozenset()
    strong_readers: frozenset[Access] = frozenset()


# For each kind of access: the fields of State that it conflicts with, and the one that records it.
CONFLICTS = {
    Kind.WEAK_READ: (0, 2),
    Kind.WEAK_WRITE: (0, 1, 2, 3),
    Kind.STRONG_READ: (0,),
    Kind.STRONG_WRITE: (0, 1),
    Kind.STRONG_UPDATE: (0, 1),
}
ENTERED = {
    Kind.WEAK_READ: 1,
    Kind.WEAK_WRITE: 0,
    Kind.STRONG_READ: 3,
    Kind.STRONG_WRITE: 2,
    Kind.STRONG_UPDATE: 2,
}
DEEDS = ("wrote", "read", "wrote (atomically)", "read (atomically)")


class Agent:
    """One CTA as the race detector sees it."""

    def __init__(self, number: int, ctas: int, threads: int) -> None:
        self.number = number
        self.clock: Clock = np.zeros(ctas, np.int64)  # what all threads knew at the last barrier
        self.acquired_clock: Clock | None = None  # what the threads in `acquired` know by now
        self.acquired = np.zeros(threads, bool)
        self.observed: Clock | None = None  # read without acquire: the next fence acquires it
        self.fenced: Clock | None = None  # left by a fence: the next relaxed write publishes it
        self.base = INTERVAL
        self.releases = 0
        self.version = 0
        self.log: list[tuple[NDArray[np.int32], Lanes, Lanes]] = []
        self.warp_synced: dict[int, int] = {}  # warp -> length of the log at its last barrier

    def barrier(self) -> None:
        """All threads of the CTA met."""
        self.base += INTERVAL
        self.releases = 0
        self.log.clear()
        self.warp_synced.clear()
        if self.acquired_clock is not None:
            self.clock = self.acquired_clock
            self.acquired_clock = None
            self.acquired.fill(False)
            self.version += 1

    def warp_barrier(self, lanes: Lanes) -> None:
        """The lanes of one or several whole warps met."""
        for warp in np.unique(lanes // 32):
            self.warp_synced[int(warp)] = len(self.log)
            mates = lanes[lanes // 32 == warp]
            self.acquired[mates] = self.acquired[mates].any()

    def acquire(self, clocks: Iterable[Clock], lanes: Lanes) -> None:
        before = self.clock if self.acquired_clock is None else self.acquired_clock
        known = np.maximum.reduce([before, *clocks])
        if np.array_equal(known, before) and self.acquired_clock is None:
            return  # nothing new; a spin loop must not bump the version, which keys the cache
        self.acquired_clock = known
        self.acquired[lanes] = True
        self.version += 1

    def known_to(self, lanes: Lanes) -> Clock:
        if self.acquired_clock is not None and self.acquired[lanes].any():
            return self.acquired_clock
        return self.clock


class CtaRaces:
    """The states of all granules, and the clocks that atomics carry from CTA to CTA."""

    def __init__(self, ctas: int, threads: int, granule: int, names: list[str]) -> None:
        self.granule = granule
        self.threads = threads
        self.names = names
        self.agents = [Agent(number, ctas, threads) for number in range(ctas)]
        self.published: dict[int, Clock] = {}
        self._states = [State()]
        self._numbers = {State(): 0}
        self._next: dict[tuple[int, int, int, bool, int, int], int] = {}

    def access(
        self,
        agent: Agent,
        known: NDArray[np.int32],
        offsets: Lanes,
        width: int,
        lanes: Lanes,
        kind: Kind,
        epoch: int | None = None,
    ) -> None:
        """Lanes access `width` bytes at offsets of a region. `known` has its granules' states."""
        cells = (offsets // self.granule)[:, None] + np.arange(width // self.granule)
        if agent.acquired_clock is None:
            self._step(agent, known, cells, kind, False, epoch)
        else:
            late = agent.acquired[lanes]
            for rows, acquired in ((cells[late], True), (cells[~late], False)):
                if len(rows):
                    self._step(agent, known, rows, kind, acquired, epoch)
        if epoch is None:
            agent.log.append((known, cells, lanes))

    def _step(
        self,
        agent: Agent,
        known: NDArray[np.int32],
        cells: Lanes,
        kind: Kind,
        acquired: bool,
        epoch: int | None,
    ) -> None:
        states = known[cells]
        label = agent.base + UNPUBLISHED if epoch is None else epoch
        low, high = int(states.min()), int(states.max())
        for state in (low,) if low == high else np.unique(states).tolist():
            key = (state, agent.number, agent.version, acquired, label, kind)
            after = self._next.get(key)
            if after is None:
                after = self._next[key] = self._transition(agent, state, kind, acquired, label)
            if low == high:
                if after != state:
                    known[cells] = after
            else:
                known[cells[states == state]] = after

    def _transition(self, agent: Agent, number: int, kind: Kind, acquired: bool, label: int) -> int:
        clock = agent.acquired_clock if acquired else agent.clock
        assert clock is not None
        state = self._states[number]
        mine = agent.number
        for column in CONFLICTS[kind]:
            for other, epoch in state[column]:
                if other != mine and epoch > clock[other]:
                    verb = "reads" if kind in (Kind.WEAK_READ, Kind.STRONG_READ) else "writes"
                    raise Fault(
                        f"race between CTAs: {self.names[mine]} {verb} what {self.names[other]} "
                        f"{DEEDS[column]}, and no release and acquire order the two"
                    )
        column = ENTERED[kind]
        if kind is Kind.WEAK_WRITE:
            state = State()
        kept = frozenset(
            (other, epoch)
            for other, epoch in state[column]
            # What is ordered before this access is also ordered before everything after it.
            if other != mine and epoch > clock[other] and kind is not Kind.STRONG_UPDATE
        )
        fields = list(state)
        fields[column] = kept | {(mine, label)}
        return self._number(State(*fields))

    def _number(self, state: State) -> int:
        number = self._numbers.setdefault(state, len(self._states))
        if number == len(self._states):
            self._states.append(state)
        return number

    def _release_epoch(self, agent: Agent) -> int:
        agent.releases += 1
        return agent.base + agent.releases

    def _publish(self, agent: Agent, lanes: Lanes, epoch: int) -> Clock:
        """The clock that a release of these lanes publishes. It covers their own accesses so far,
        which get its epoch."""
        member = np.zeros(self.threads, bool)
        member[lanes] = True
        waiting = agent.base + UNPUBLISHED
        for position, (known, cells, who) in enumerate(agent.log):
            covered = member[who]
            for warp, synced in agent.warp_synced.items():
                if position < synced and member[warp * 32 : warp * 32 + 32].any():
                    covered = covered | (who // 32 == warp)
            if covered.any():
                self._relabel(known, cells[covered], (agent.number, waiting), epoch)
        clock = agent.known_to(lanes).copy()
        clock[agent.number] = epoch
        return clock

    def _relabel(self, known: NDArray[np.int32], cells: Lanes, waiting: Access, epoch: int) -> None:
        states = known[cells]
        for number in np.unique(states).tolist():
            state = self._states[number]
            if any(waiting in column for column in state):
                entered = (waiting[0], epoch)
                fresh = State(
                    *(
                        (column - {waiting}) | {entered} if waiting in column else column
                        for column in state
                    )
                )
                known[cells[states == number]] = self._number(fresh)

    def fence(self, agent: Agent, lanes: Lanes) -> None:
        """A fence.acq_rel or membar.gl."""
        if agent.observed is not None:
            agent.acquire([agent.observed], lanes)
            agent.observed = None
        fenced = self._publish(agent, lanes, self._release_epoch(agent))
        agent.fenced = fenced if agent.fenced is None else np.maximum(agent.fenced, fenced)

    def synchronize(
        self,
        agent: Agent,
        addresses: list[int],
        lanes: Lanes,
        *,
        reads: bool,
        writes: bool,
        acquires: bool,
        releases: bool,
    ) -> int | None:
        """Passes clocks on through a strong access. Returns its epoch if it publishes one."""
        if reads:
            seen = {
                id(clock): clock for a in addresses if (clock := self.published.get(a)) is not None
            }
            if seen and acquires:
                agent.acquire(seen.values(), lanes)
            elif seen:
                clocks = [*seen.values(), *([] if agent.observed is None else [agent.observed])]
                agent.observed = np.maximum.reduce(clocks)
        if not writes:
            return None
        epoch, clock = None, None
        if releases:
            epoch = self._release_epoch(agent)
            clock = self._publish(agent, lanes, epoch)
        elif agent.fenced is not None:
            epoch = self._release_epoch(agent)
            clock = agent.fenced.copy()
            clock[agent.number] = epoch
        for address in addresses:
            before = self.published.get(address) if reads else None
            if clock is None:
                # A store without release overwrites what earlier releases published here.
                if not reads:
                    self.published.pop(address, None)
            else:
                joined = clock if before is None else np.maximum(before, clock)
                self.published[address] = joined
        return epoch
