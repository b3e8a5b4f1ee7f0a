"""What an optimizer declares of itself, and the plan's members that its parameters become."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .. import backends, check
from ..plan import devices
from ..plan.bucket import Member
from ..plan.launcher import Backend
from ..plan.plan import Plan
from ..plan.staging import GradientLayout
from .hyperparams import scalar_dtype

Group = dict[str, Any]
State = dict[str, Any]


class DeclaredOptimizer(torch.optim.Optimizer):
    """A subclass says which rule a parameter takes (`_rule`), with what states (`_state_shapes`),
    how a state begins (`_new_state`), and a row of scalars (`_scalars`)."""

    steps_are_tensors = True
    scalars_on_tensors = False  # whether `_scalars` takes tensors too
    backend: str | None = None

    def _check_group(self, group: Group) -> None:
        """Refuses a group whose hyper-parameters cannot be carried out."""
        decay = group.get("weight_decay")
        if isinstance(decay, float) and decay != decay:  # the rules would take it for none
            raise ValueError(f"{type(self).__name__}: weight_decay should be a number but is: nan")

    def _check_capturable(self, where: check.Where, group: Group, param: Tensor) -> None:
        if group.get("capturable") and (devices.on_host(param) or param.device.type == "mps"):
            raise AssertionError(
                "If capturable=True, params and state_steps must be on supported devices: "
                f"['cuda', 'xpu']. {type(self).__name__}: {where}"
            )

    def _check_param(self, where: check.Where, group: Group, param: Tensor, grad: Tensor) -> None:
        """Refuses a parameter that this optimizer cannot take."""
        self._check_capturable(where, group, param)

    def _new_state(self, group: Group, param: Tensor, grad: Tensor) -> State:
        raise NotImplementedError

    def _state_shapes(self, group: Group, param: Tensor) -> dict[str, torch.Size]:
        """The states of the parameter's rule by key, in the rule's order, and their shapes."""
        raise NotImplementedError

    def _rule(self, group: Group, param: Tensor) -> str:
        raise NotImplementedError

    def _rms_key(self) -> str | None:
        return None

    def _counts_on_device(self, group: Group) -> bool:
        """Whether the group's step counters lie where their parameters do."""
        return self.steps_are_tensors and bool(group.get("capturable"))

    def _convert_steps(self) -> None:
        """Makes tensors of counters that an old checkpoint holds as numbers."""
        for group in self.param_groups if self.steps_are_tensors else ():
            dtype = scalar_dtype(group.get("fused"))
            for param in group["params"]:
                step = self.state.get(param, {}).get("step")
                if step is not None and not isinstance(step, Tensor):
                    self.state[param]["step"] = torch.tensor(float(step), dtype=dtype, device="cpu")

    def _waits_for_device(self, group: Group) -> bool:
        """Whether the host would have to wait for a hyper-parameter."""
        values = (group.get("lr"), *(group.get("betas") or ()))
        return any(isinstance(value, Tensor) and not devices.on_host(value) for value in values)

    def _scalars(self, group: Group, step: Any, dtype: torch.dtype) -> dict[str, Any]:
        """The rule's scalars at a step, by name. If `scalars_on_tensors`, `step` may be a tensor of
        many steps; then each scalar is a number or a tensor."""
        raise NotImplementedError

    def _prepare_gradients(self, members: list[Member]) -> None:
        """Changes the gradients before the step, in place, when nothing can be refused any more."""

    def _choice(self, group: Group) -> object:
        """The options of a group that choose a rule, its states, or what is refused. A plan is made
        anew when they change."""
        return self._counts_on_device(group)

    # From declarations to members.

    def _parameters(self) -> Iterator[tuple[check.Where, Group, Tensor]]:
        for index, group in enumerate(self.param_groups):
            for i, param in enumerate(group["params"]):
                yield check.Where(self.param_groups, index, i), group, param

    def _choose(self, device: torch.device, where: object) -> Backend:
        backend = backends.choose(self.backend, device, where)
        backends.warn_if_slow(backend, device)
        return backend

    def _check_and_make_members(self, old: Plan | None) -> list[Member]:
        """Checks everything first; states are made only when nothing can be refused any more.
        Members of the `old` plan that only have no gradient for now stay members."""
        name = type(self).__name__
        parameters = list(self._parameters())
        chosen: set[torch.device] = set()
        first: dict[int, check.Where] = {}
        for where, group, param in parameters:
            grad = param.grad
            if grad is None:
                continue
            check.check_only_once(first, where, param, name)
            self._check_param(where, group, param, grad)
            check.check_tensors(where, param, grad, name)
            if param.device not in chosen:
                backends.choose(self.backend, param.device, where)
                chosen.add(param.device)
            if state := self.state.get(param):
                self._check_states(where, group, param, state)
        absent = {} if old is None else {id(m.param): m for m in old.members if not m.is_present}
        members = []
        for where, group, param in parameters:
            grad, before = param.grad, absent.get(id(param))
            if grad is not None:
                state = self.state[param]
                if not state:
                    state.update(self._new_state(group, param, grad))
                members.append(self._member(where, group, param, GradientLayout.of(grad)))
            elif before is not None and self._can_stay(where, group, before):
                members.append(self._member(where, group, param, before.gradient_layout))
        return members

    def _check_states(self, where: check.Where, group: Group, param: Tensor, state: State) -> None:
        name = type(self).__name__
        if "step" not in state:
            raise KeyError(f"step: {name}: {where} has a state without its counter")
        for key, shape in self._state_shapes(group, param).items():
            # A missing one is the peers' KeyError: an option was switched on later.
            check.check_state(where, key, state[key], shape, param, name)

    def _can_stay(self, where: check.Where, group: Group, member: Member) -> bool:
        """Whether nothing would be wrong with a member that is absent. What is wrong is refused
        when its gradient comes, and a new plan is made."""
        param, state = member.param, self.state.get(member.param)
        if state is not member.state or not state:
            return False
        try:
            check.check_tensors(where, param, param, type(self).__name__)
            self._check_states(where, group, param, state)
        except (RuntimeError, TypeError, KeyError):
            return False
        return True

    def _member(
        self, where: check.Where, group: Group, param: Tensor, layout: GradientLayout
    ) -> Member:
        state = self.state[param]
        if self._counts_on_device(group) and isinstance(state["step"], Tensor):
            state["step"] = devices.to_device(state["step"], param.device)
        keys = tuple(self._state_shapes(group, param))
        rule = self._rule(group, param)
        return Member(param, state, where.group, rule, keys, layout, self._rms_key())

    def _where(self, member: Member) -> check.Where:
        params = self.param_groups[member.group]["params"]
        index = next(i for i, param in enumerate(params) if param is member.param)
        return check.Where(self.param_groups, member.group, index)
