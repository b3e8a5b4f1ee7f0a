"""Makes the members of a plan from an optimizer's parameters. Everything is checked before a state
is made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from .. import backends, check, check_states
from ..check_states import REPAIR
from ..plan import devices, flat, shards
from ..plan.bucket import Bucket, Member
from ..plan.launcher import Backend
from ..plan.layouts import Layouts
from ..plan.plan import Plan
from ..plan.storage import SCALE
from ..rules import RULES
from ..shared_memory import Memory, find_shared
from .declared import Group, State
from .first_states import FirstStates, look_at_states


class CheckedOptimizer(FirstStates):
    """Checks parameters and states, and makes members of them."""

    def _may_share(self) -> bool:
        return shards.may_share() or bool(flat.DECLARED)

    def _shard_of(self, param: Tensor) -> shards.Shard | None:
        piece = flat.piece_of(param)
        if piece is not None:
            return flat.shard_of(piece, self.is_capped)
        return shards.shard_of(param, self.is_capped)

    def _is_elsewhere(self, param: Tensor) -> bool:
        """Whether other processes hold all of a parameter, and nothing is to be done here."""
        return False

    def _choose(self, device: torch.device, where: object) -> Backend:
        backend = backends.choose(self.backend, device, where)
        backends.warn_if_slow(backend, device)
        return backend

    def _check_and_make_members(self, old: Plan | None) -> list[Member]:
        """Checks everything first; then makes the missing states. A member of the `old` plan whose
        gradient is only absent for now stays a member."""
        layouts = Layouts()
        if self._has_options:
            self._refuse_options_without_effect()
        members = self._check_memory(self._check_members(layouts, old))
        new = [member for member in members if member.is_new]
        if len(new) < len(members) and self._counts_in_states():
            self._move_counters(member for member in members if not member.is_new)
        self._make_states(new, layouts)
        return members

    def _move_counters(self, members: Iterable[Member]) -> None:
        """Moves counters that a checkpoint left elsewhere to the device, if their group counts
        there."""
        for member in members:
            step, device = member.state["step"], member.layouts[0].device
            on_device = self._counts_on_device(self.param_groups[member.group])
            if on_device and isinstance(step, Tensor) and step.device != device:
                member.state["step"] = devices.to_device(step, device)

    def _check_members(self, layouts: Layouts, old: Plan | None) -> list[Member]:
        name, rms_key = type(self).__name__, self._rms_key()
        shapes_of = self._stored_shapes if self._has_companions else self._state_shapes
        absent = {} if old is None else {id(m.param): m for m in old.members if not m.is_present}
        chosen: set[torch.device] = set()
        may_share = self._may_share()
        members: list[Member] = []
        for where, group, param in self._parameters():
            grad = param.grad
            if grad is None:
                before = absent.get(id(param)) if absent else None
                if before is not None and (kept := self._kept(where, group, before, layouts)):
                    members.append(kept)
                continue
            if may_share and self._is_elsewhere(param):
                continue
            self._check_param(where, group, param, grad)
            found, addresses = check.look_at(where, param, grad, layouts, name)
            device = found[0].device
            if device not in chosen:
                backends.choose(self.backend, device, where)
                chosen.add(device)
            shapes = shapes_of(group, param)
            state = self.state.get(param) if self.state else None
            rule = self._rule(group, param)
            member = Member(
                param, {} if state is None else state, where.group, rule,
                tuple(shapes), found, addresses, rms_key,
                shard=self._shard_of(param) if may_share and RULES[rule].factored else None,
                noise=self._noise_of(where, param) if self._has_options else None,
                is_new=not state or self._lacks_states(group, state),
            )  # fmt: skip
            if member.shard is not None and member.mode == "flat":
                backends.check_flat(self.backend, device, where)
            if not member.is_new:
                assert state is not None
                if self.master_weights:
                    self._add_masters(param, state)
                self._check_states(where, param, state, shapes)
                look_at_states(member, layouts)
            members.append(member)
        check.check_only_once(self.param_groups, [member.param for member in members], name)
        return members

    def _check_memory(self, members: list[Member]) -> list[Member]:
        """Refuses members that share memory. If an absent one may be the cause, all absent ones are
        left out instead: the error comes when their gradients do."""
        here = [member for member in members if member.addresses[1] or member.is_present]
        if len(here) < len(members) and find_shared(_memory_of(members)) is not None:
            members = here
        check.check_memory(_memory_of(members), self._named_tensors, type(self).__name__)
        return members

    def _named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors that a step reads or writes, each with its name for an error."""
        for where, group, param in self._parameters():
            yield str(where), param
            state = self.state.get(param) or {}
            for key in self._stored_shapes(group, param) if state else ():
                yield f"state '{key}' of {where}", state[key]
            if param.grad is not None:
                yield f"the gradient of {where}", param.grad

    def _check_states(
        self, where: check.Where, param: Tensor, state: State, shapes: dict[str, torch.Size]
    ) -> None:
        name = type(self).__name__
        if self._counts_in_states():
            if "step" not in state:
                raise KeyError(f"step: {name}: {where} has a state without its counter. {REPAIR}")
            check_states.check_step(where, state["step"], param, name)
        for key in self.history:
            if key not in state:
                raise KeyError(f"{key}: {name}: {where} has a state without it. {REPAIR}")
            check_states.check_number(where, key, state[key], param, name)
        for key, shape in shapes.items():
            if key not in state:
                raise KeyError(
                    f"{key}: {name}: {where} has no state '{key}', but "
                    f"{', '.join(map(repr, state))}: it was saved by another optimizer, or an "
                    f"option that needs '{key}' was switched on later. {REPAIR}"
                )
            value, own_shape, own = state[key], shape, param
            if shards.is_dtensor(param):
                spread = shards.spread_of_state(param, shape, self.reduced.get(key))
                if key.endswith(SCALE):
                    spread = shards.spread_of_blocks(param, shape)
                check_states.check_spread(where, key, value, shape, param, spread.placements, name)
                value, own_shape, own = shards.local(value), spread.shape, shards.local(param)
            allowed = self._allowed_dtypes(key, param)
            check_states.check_state(where, key, value, own_shape, own, allowed, name)
        rms_key = self._rms_key()
        if rms_key in state:
            check_states.check_number(where, rms_key, state[rms_key], param, name)

    def _check_steps(self, bucket: Bucket) -> None:
        """Refuses counters that were changed in place to something that is not a step number."""
        for member in bucket.members if self._counts_in_states() else ():
            step = member.state["step"]
            check_states.check_step(self._where(member), step, member.param, type(self).__name__)

    def _kept(
        self, where: check.Where, group: Group, before: Member, layouts: Layouts
    ) -> Member | None:
        """A member without a gradient, with its present layouts and addresses. None if something is
        wrong with it: the error comes when its gradient does, since that makes a new plan."""
        param, state = before.param, before.state
        shapes = self._stored_shapes(group, param)
        same = (before.rule, before.state_keys) == (self._rule(group, param), tuple(shapes))
        known = self.state.get(param)
        if not same or not (known is state or not (known or state or shapes)):
            return None
        name = type(self).__name__
        try:
            found, addresses = check.look_at(where, param, param, layouts, name)
            self._check_states(where, param, state, shapes)
        except (RuntimeError, TypeError, KeyError, ValueError):
            return None
        kept = replace(
            before,
            group=where.group,
            layouts=(found[0], before.layouts[1]),
            addresses=(addresses[0], 0),
            is_new=False,
        )
        look_at_states(kept, layouts)
        return kept

    def _where(self, member: Member) -> check.Where:
        params = self.param_groups[member.group]["params"]
        index = next(i for i, param in enumerate(params) if param is member.param)
        return check.Where(self.param_groups, member.group, index)


def _memory_of(members: list[Member]) -> Memory:
    """The memory of parameters, of the states that exist already, and of gradients."""
    starts = [member.addresses[0] for member in members]
    extents = [member.layouts[0].extent for member in members]
    for member in members:
        if len(member.addresses) > 2:
            starts += member.addresses[2:]
            extents += [layout.extent for layout in member.layouts[2:]]
    n_written = len(starts)
    starts += [member.addresses[1] for member in members]
    extents += [member.layouts[1].extent for member in members]

    def tensors() -> list[Tensor]:
        params = [member.param for member in members]
        states = [m.state[key] for m in members if len(m.addresses) > 2 for key in m.state_keys]
        return params + states + [param if param.grad is None else param.grad for param in params]

    return Memory(starts, extents, n_written, tensors)
