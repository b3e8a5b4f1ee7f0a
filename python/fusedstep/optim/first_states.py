"""Makes the states and counters of parameters at their first step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from .. import check
from ..plan import shards
from ..plan.bucket import Member
from ..plan.layouts import Layout, Layouts
from .declared import Group, State
from .stored import StoredOptimizer


class FirstStates(StoredOptimizer):
    """Makes states, of parameters that were checked."""

    def _parameters(self) -> Iterator[tuple[check.Where, Group, Tensor]]:
        for index, group in enumerate(self.param_groups):
            for i, param in enumerate(group["params"]):
                yield check.Where(self.param_groups, index, i), group, param

    def _make_states(self, members: list[Member], layouts: Layouts) -> None:
        """Makes the states of members that have none."""
        # (group, layouts of parameter and gradient, shape) -> all layouts, states included.
        complete: dict[tuple[Any, ...], tuple[Layout, ...]] = {}
        for member, step in zip(members, self._new_counters(members), strict=False):
            param, state, grad = member.param, member.state, member.param.grad
            assert grad is not None
            group = self.param_groups[member.group]
            made = {} if step is None else {"step": step}
            made |= self._new_state(group, param, grad)
            if self.history or self._has_companions:
                made |= self._more_states(group, param)
            if state:  # it lacks some
                made |= {key: value for key, value in state.items() if value is not None}
            state.update(made)
            if state:
                self.state[param] = state
            # Flat pieces of one length may be parts of different shapes.
            alike = member.group, member.layouts, member.shard and member.shard.whole
            if alike not in complete:
                look_at_states(member, layouts)
                complete[alike] = member.layouts
            else:
                member.layouts = complete[alike]
                member.addresses += _addresses_of(_states(member))

    def _make_missing_states(self) -> None:
        """Makes the states of all parameters that have none, as their first step would."""
        missing = [
            own
            for own in self._parameters()
            if not (self.state.get(own[2]) or torch.nn.parameter.is_lazy(own[2]))
        ]
        members = [
            Member(param, {}, where.group, self._rule(group, param), (), (), ())
            for where, group, param in missing
        ]
        for (_, group, param), step in zip(missing, self._new_counters(members), strict=False):
            made = {} if step is None else {"step": step}
            made |= self._new_state(group, param, param.detach())
            self.state[param] = made | self._more_states(group, param)

    def _more_states(self, group: Group, param: Tensor) -> State:
        """The states at the first step besides the rule's and the counter."""
        made: State = {}
        device = param.device if self._counts_on_device(group) else "cpu"
        for key, first in zip(self.history, self._first_history(group), strict=True):
            made[key] = torch.empty((), dtype=self._counter_dtype(group), device=device)
            made[key].fill_(first)
        return made | self._new_companions(group, param)

    def _lacks_states(self, group: Group, state: State) -> bool:
        """Whether a state that is not empty is to be filled as at the first step: the peer's may be
        so."""
        return False

    def _new_counters(self, members: list[Member]) -> Iterable[int | Tensor | None]:
        """A counter for each. Those of one dtype and device are views of one tensor, as the plan
        needs them."""
        if not self._counts_in_states():
            return repeat(None)
        if not self.steps_are_tensors:
            return repeat(0)
        kinds: list[tuple[torch.dtype, torch.device]] = []
        of_group: dict[tuple[int, torch.device], tuple[torch.dtype, torch.device]] = {}
        for member in members:
            key = member.group, member.param.device
            if key not in of_group:
                group = self.param_groups[member.group]
                device = key[1] if self._counts_on_device(group) else torch.device("cpu")
                of_group[key] = self._counter_dtype(group), device
            kinds.append(of_group[key])
        made = {
            kind: iter(torch.zeros(count, dtype=kind[0], device=kind[1]).unbind())
            for kind, count in Counter(kinds).items()
        }
        return [next(made[kind]) for kind in kinds]


def look_at_states(member: Member, layouts: Layouts) -> None:
    """Adds the layouts and addresses of the states to those of parameter and gradient."""
    states = _states(member)
    member.layouts += tuple([layouts.of(state) for state in states])
    member.addresses += _addresses_of(states)


def _states(member: Member) -> list[Tensor]:
    states = [member.state[key] for key in member.state_keys]
    return states if type(member.param) in shards.PLAIN else list(map(shards.local, states))


def _addresses_of(tensors: list[Tensor]) -> tuple[int, ...]:
    return tuple([tensor.data_ptr() for tensor in tensors])
