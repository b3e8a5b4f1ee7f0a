"""Branches, exits, barriers, and instructions that do nothing here."""

from __future__ import annotations

from typing import Any

import numpy as np

from .cta import Cta
from .decode import TYPES, Action, Decoder, instruction
from .faults import Fault
from .syntax import Immediate


@instruction("bra")
def branch(d: Decoder) -> None:
    d.take("uni")
    d.finish(1)
    d.step.target = d.program.place_of(d.operands[0])
    d.step.flow = "branch"


@instruction("brx")
def indexed_branch(d: Decoder) -> None:
    if not d.take("idx"):
        raise d.unknown()
    d.take("uni")
    d.finish(2)
    d.step.index = d.source(0, TYPES["u32"])
    d.step.targets = d.program.places_of(d.operands[1])
    d.step.flow = "switch"


@instruction("ret", "exit")
def leave(d: Decoder) -> None:
    d.take("uni")
    d.finish(0)
    d.step.flow = "exit"


@instruction("trap", "brkpt")
def trap(d: Decoder) -> Action:
    def action(cta: Cta) -> None:
        raise Fault(f"thread {int(cta.lanes[0])} reached a trap")

    return action


@instruction("bar", "barrier")
def barrier(d: Decoder) -> Action | None:
    d.take("cta")
    d.take("aligned")
    if d.take("warp"):
        return warp_barrier(d)
    kind = d.take("sync", "red")
    if kind == "red":
        reduction(d)
    elif kind == "sync":
        d.finish(len(d.operands))
        if len(d.operands) > 1:
            require_all_threads(d, 1)
    else:
        raise d.unknown()
    if not isinstance(d.operands[0 if kind == "sync" else 1], Immediate):
        raise d.unknown()
    d.step.flow = "barrier"
    return None


def require_all_threads(d: Decoder, operand: int) -> None:
    """Raises if a barrier counts fewer threads than the CTA has, which is not modelled."""
    count = d.operands[operand]
    if not isinstance(count, Immediate) or count.bits != d.program.threads:
        raise Fault("a barrier for a part of a CTA's threads is not modelled")


def reduction(d: Decoder) -> None:
    """barrier.red: all threads vote, and all get the result."""
    operation, type_ = d.take("popc", "and", "or"), d.type()
    if operation is None or type_.name != ("u32" if operation == "popc" else "pred"):
        raise d.unknown()
    if len(d.operands) == 4:
        require_all_threads(d, 2)
    d.finish(len(d.operands))
    target, votes = d.target(0, type_.bits), d.source(len(d.operands) - 1, TYPES["pred"])

    def done(cta: Cta) -> None:
        cta.mask, cta.whole = cta.live, True
        cta.demand(votes, "a vote")
        vote = cta.registers[votes]
        outcome: Any = np.count_nonzero(vote)
        if operation != "popc":
            outcome = vote.all() if operation == "and" else vote.any()
        cta.write_bits(target, np.full(cta.threads, outcome, TYPES[type_.name].view), None)

    d.step.barrier_done = done


def warp_barrier(d: Decoder) -> Action:
    d.take("sync")
    d.finish(1)
    from .warps import meeting, require_members

    members = meeting(d, 0)

    def action(cta: Cta) -> None:
        require_members(cta, members)
        lanes = cta.lanes
        cta.shared_races.warp_barrier(lanes)
        cta.agent.warp_barrier(lanes)
        cta.warps_met = True

    return action


@instruction("nanosleep", "griddepcontrol", "setmaxnreg")
def hint(d: Decoder) -> Action:
    """Does nothing. These wait, prepare the launch of the next grid, or hand over registers, and
    here one grid runs at a time."""
    return lambda cta: None
