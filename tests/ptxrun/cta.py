"""One CTA: its registers and memory, the position of each thread, and the loop that runs it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .cta_races import Agent, CtaRaces
from .faults import Fault
from .memory import Memory, Scratch
from .shared_races import SharedRaces
from .thread_races import ThreadRaces

if TYPE_CHECKING:
    from .decode import Step
    from .program import Program

Mask = NDArray[np.bool_]
NOWHERE = 1 << 62
SINK = -1  # stands for a register that nobody reads


class Cta:
    """The state of a CTA. The array of a register is replaced, never changed in place, so that
    snapshots can share it."""

    def __init__(
        self,
        program: Program,
        number: int,
        position: tuple[int, int, int],
        grid: tuple[int, int, int],
        memory: Memory,
        races: CtaRaces,
        thread_races: ThreadRaces | None,
        known: dict[int, NDArray[np.int32]],
        params: NDArray[np.uint8],
    ) -> None:
        threads = program.threads
        self.program, self.threads = program, threads
        self.position, self.memory, self.params = position, memory, params
        self.races, self.known, self.thread_races = races, known, thread_races
        self.interval = thread_races.begin_interval() if thread_races else 0
        self.warps_met = False  # whether a warp barrier came after the last barrier of the CTA
        self.agent: Agent = races.agents[number]
        self.registers: list[NDArray[Any]] = program.initial_registers(position, grid)
        self.undefined: dict[int, NDArray[Any]] = program.initial_undefined()
        self.shared = Scratch("shared", program.shared_bytes)
        self.shared_races = SharedRaces(program.shared_bytes, threads, program.shared_granule)
        self.local = Scratch("local", program.local_bytes * threads)
        self.counts = program.counts
        self.requests = program.requests
        self.all_lanes = np.arange(threads)
        self.warp_of = self.all_lanes // 32
        # For the instruction that is being executed:
        self.mask: Mask = np.ones(threads, bool)
        self.active = threads
        self.whole = True  # whether all threads that have not exited take part
        # For the CTA. A place is the index of an instruction; the dicts map places to threads.
        self.live: Mask = np.ones(threads, bool)
        self.living = threads
        self.groups: dict[int, Mask] = {}  # threads that are not running now
        self.gathering: dict[int, Mask] = {}  # lanes that wait for others of their warp
        self.waiting: dict[int, Mask] = {}  # threads that wait at a barrier
        self.place = 0
        self.progress = 0  # counts changes of global memory

    @property
    def lanes(self) -> NDArray[np.int64]:
        """The threads that execute the current instruction."""
        return self.all_lanes if self.active == self.threads else np.flatnonzero(self.mask)

    def write(self, target: int, value: NDArray[Any], sources: tuple[int, ...], parts: int) -> None:
        """Sets a register that was computed from `sources`. If any bit of a part is undefined in a
        source, that whole part of the result is."""
        undefined = self.undefined
        if undefined.keys().isdisjoint(sources):
            if not self.whole:
                self._merge(target, value, None)
            elif target != SINK:
                self.registers[target] = value
                undefined.pop(target, None)
        else:
            self.write_bits(target, value, self.smear(sources, value, parts))

    def write_bits(self, target: int, value: NDArray[Any], bits: NDArray[Any] | None) -> None:
        """Sets a register; `bits` says which of its bits are undefined."""
        if bits is not None and not bits.any():
            bits = None
        if not self.whole:
            self._merge(target, value, bits)
        elif target != SINK:
            self.registers[target] = value
            if bits is None:
                self.undefined.pop(target, None)
            else:
                self.undefined[target] = bits

    def _merge(self, target: int, value: NDArray[Any], bits: NDArray[Any] | None) -> None:
        if target == SINK:
            return
        self.registers[target] = np.where(self.mask, value, self.registers[target])
        before = self.undefined.get(target)
        if before is None and bits is None:
            return
        zero = np.zeros_like(value)
        merged = np.where(
            self.mask, zero if bits is None else bits, zero if before is None else before
        )
        if merged.any():
            self.undefined[target] = merged
        else:
            self.undefined.pop(target, None)

    def smear(self, sources: tuple[int, ...], value: NDArray[Any], parts: int) -> NDArray[Any]:
        """The undefined bits of a result: all bits of a part if any bit of a source's part is."""
        bad = np.zeros(self.threads * parts, bool)
        for source in sources:
            bits = self.undefined.get(source)
            if bits is None:
                continue
            if parts > 1 and bits.dtype.itemsize > 1:
                bits = bits.view(f"u{bits.dtype.itemsize // parts}")
            bad |= bits != 0
        if value.dtype == bool:
            return bad
        ones = np.zeros(self.threads * parts, f"u{value.dtype.itemsize // parts}")
        ones[bad] = ~ones.dtype.type(0)
        return ones.view(value.dtype)

    def demand(self, register: int, use: str) -> None:
        """Faults if any bit of this register is undefined in an active thread."""
        bits = self.undefined.get(register)
        if bits is None:
            return
        bad = (bits != 0) & self.mask
        if bad.any():
            lane = int(np.flatnonzero(bad)[0])
            name = self.program.register_name(register)
            raise Fault(f"undefined value: thread {lane} uses {name} as {use}")

    def run(self) -> Iterator[bool]:
        """Runs the CTA to its end. Yields True where other CTAs must get a turn (before an atomic
        or a strong access), False where they may (at a barrier)."""
        steps = self.program.steps
        end = len(steps)
        place, group, size = 0, self.live.copy(), self.threads
        given_up = False
        nearest = NOWHERE
        while True:
            if place >= nearest or not size:
                if size:
                    self._park(place, group)
                given_up = not self.groups and bool(self.gathering)
                if given_up:  # the missing lanes cannot come any more
                    self.groups, self.gathering = self.gathering, {}
                if not self.groups:
                    yield from self._barrier()
                    if not self.living:
                        return
                place = min(self.groups)
                group = self.groups.pop(place)
                size = int(np.count_nonzero(group))
                nearest = min(self.groups, default=NOWHERE)
            if place >= end:
                self._exit(group)
                size = 0
                continue
            step = steps[place]
            if step.complete is not None and size < self.living:
                group = self._gather(place, group, step, given_up)
                size = int(np.count_nonzero(group))
                if not size:
                    continue
            if step.yields:
                self.place, self.mask = place, group
                yield True
            try:
                self.mask, self.active = group, size
                if step.guard is not None:
                    self.demand(step.guard, "a predicate")
                    holds = self.registers[step.guard]
                    self.mask = group & ~holds if step.guard_negated else group & holds
                    self.active = int(np.count_nonzero(self.mask))
                self.counts[place] += self.active
                self.whole = self.active == self.living
                if step.action is not None:
                    if self.active:
                        step.action(self)
                    place += 1
                    continue
            except Fault as fault:
                raise self._located(fault, step) from None
            # A branch, an exit or a barrier may split the group.
            taken, took = self.mask, self.active
            stays = group & ~taken if took < size else None
            if took:
                if step.flow == "branch":
                    self._park(step.target, taken)
                elif step.flow == "switch":
                    self._scatter(step, taken)
                elif step.flow == "exit":
                    self._exit(taken)
                else:
                    self._wait(place, taken, step)
            if stays is None:
                size = 0
            else:
                group, size = stays, size - took
            place += 1
            nearest = min(self.groups, default=NOWHERE)

    def _park(self, place: int, group: Mask) -> None:
        there = self.groups.get(place)
        self.groups[place] = group if there is None else there | group

    def _gather(self, place: int, group: Mask, step: Step, given_up: bool) -> Mask:
        """For an instruction that lanes of a warp execute together: the group if all of them are
        here, else nobody, and the group waits."""
        there = self.gathering.pop(place, None)
        group = group if there is None else there | group
        self.mask = group
        assert step.complete is not None
        if given_up or step.complete(self):
            return group
        self.gathering[place] = group
        return np.zeros_like(group)

    def _scatter(self, step: Step, taken: Mask) -> None:
        """An indexed branch: each thread goes where its own index says."""
        self.demand(step.index, "the index of a branch")
        index = self.registers[step.index]
        for value in np.unique(index[taken]):
            if value >= len(step.targets):
                raise Fault(f"branch {value} of {len(step.targets)}: {step.text}")
            self._park(step.targets[value], taken & (index == value))

    def _exit(self, group: Mask) -> None:
        self.live = self.live & ~group
        self.living = int(np.count_nonzero(self.live))

    def _wait(self, place: int, group: Mask, step: Step) -> None:
        there = self.waiting.get(place)
        self.waiting[place] = group if there is None else there | group

    def _barrier(self) -> Iterator[bool]:
        """No thread can go on. Either all wait at one barrier, or the kernel is wrong."""
        if not self.waiting:
            return
        places = sorted(self.waiting)
        step = self.program.steps[places[0]]
        if len(places) > 1:
            others = ", ".join(str(place) for place in places)
            problem = f"barrier divergence: threads wait at instructions {others}"
            raise self._located(Fault(problem), step)
        if self.living < self.threads:
            problem = f"barrier divergence: {self.threads - self.living} threads have exited"
            raise self._located(Fault(problem), step)
        self.groups = {places[0] + 1: self.waiting.pop(places[0])}
        self.shared_races.barrier()
        self.agent.barrier()
        self.warps_met = False
        if self.thread_races is not None:
            self.interval = self.thread_races.begin_interval()
        if step.barrier_done is not None:
            step.barrier_done(self)
        yield False

    def _located(self, fault: Fault, step: Step) -> Fault:
        return Fault(f"{fault}; CTA {self.position}, instruction `{step.text}`")

    def snapshot(self) -> tuple[Any, ...]:
        """The state that decides what this CTA does next, without global memory."""
        parked = [*self.groups.items(), *self.gathering.items()]
        groups = [(place, mask.tobytes()) for place, mask in parked]
        return (
            list(self.registers),
            self.place,
            groups,
            self.mask.tobytes(),
            self.shared.data.tobytes(),
        )

    def equals(self, snapshot: tuple[Any, ...]) -> bool:
        """Whether the CTA is in the same state as in the snapshot."""
        now = self.snapshot()
        same = all(a is b or np.array_equal(a, b) for a, b in zip(now[0], snapshot[0], strict=True))
        return same and now[1:] == snapshot[1:]
