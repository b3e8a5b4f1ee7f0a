"""What an optimizer declares of itself, and the plan's members that its parameters become."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .. import backends, check
from ..plan import devices
from ..plan.bucket import Bucket, Member
from ..plan.launcher import Backend
from ..plan.plan import Plan
from ..plan.staging import GradientLayout
from ..shared_memory import find_shared
from .hyperparams import scalar_dtype, steps_as_tensors
from .limits import Limits

Group = dict[str, Any]
State = dict[str, Any]


class DeclaredOptimizer(torch.optim.Optimizer):
    """A subclass says which rule a parameter takes (`_rule`), with what states (`_state_shapes`),
    how a state begins (`_new_state`), and a row of scalars (`_scalars`)."""

    steps_are_tensors = True
    scalars_on_tensors = False  # whether `_scalars` takes tensors too
    backend: str | None = None
    limits = Limits()  # of the hyper-parameters

    def _check_limits(self, group: Group) -> None:
        """Refuses a hyper-parameter outside its limits."""
        self.limits.check(group, self._name_group)

    def _check_group(self, group: Group) -> None:
        """Refuses a group that cannot be carried out. At every step: values change."""
        self._check_limits(group)

    def _check_keys(self) -> None:
        """Refuses groups that lack a hyper-parameter, as those of another optimizer do."""
        # Not all defaults: torch adds "differentiable" to everybody's.
        arguments = type(self).__init__.__code__.co_varnames
        needed = [key for key in self.defaults if key in arguments]
        for group in self.param_groups:
            missing = [key for key in needed if key not in group]
            if missing:
                raise KeyError(
                    f"{missing[0]}: {self._name_group(group)} has no {', '.join(missing)}. Load a "
                    "checkpoint of the same optimizer, or set them in the group."
                )

    def _name_group(self, group: Group) -> str:
        index = next((k for k, own in enumerate(self.param_groups) if own is group), None)
        return f"{type(self).__name__}: " + ("a group" if index is None else f"group {index}")

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
            steps_as_tensors(self.state, group["params"], scalar_dtype(group.get("fused")))

    def _waits_for_device(self, group: Group) -> bool:
        """Whether the host would have to wait for a hyper-parameter."""
        values = (group.get("lr"), *(group.get("betas") or ()))
        return any(isinstance(value, Tensor) and not devices.on_host(value) for value in values)

    def _scalars(self, group: Group, step: Any, dtype: torch.dtype) -> dict[str, Any]:
        """The rule's scalars at a step, by name. If `scalars_on_tensors`, `step` may be a tensor of
        many steps; then each scalar is a number or a tensor."""
        raise NotImplementedError

    def _dtype_after_loading(self, saved: torch.dtype, param: torch.dtype) -> torch.dtype:
        """As what a state is loaded that was saved in the dtype `saved`."""
        return saved

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
        absent = {} if old is None else {id(m.param): m for m in old.members if not m.is_present}
        found: list[tuple[check.Where, Group, Tensor, State | None]] = []
        staying: list[Tensor] = []
        chosen: set[torch.device] = set()
        first: dict[int, check.Where] = {}
        for where, group, param in self._parameters():
            grad = param.grad
            if grad is not None:
                check.check_only_once(first, where, param, name)
                self._check_param(where, group, param, grad)
                check.check_tensors(where, param, grad, name)
                if param.device not in chosen:
                    backends.choose(self.backend, param.device, where)
                    chosen.add(param.device)
                state = self.state.get(param)
                if state:
                    self._check_states(where, group, param, state)
                found.append((where, group, param, state))
            elif id(param) in absent and self._can_stay(where, group, absent[id(param)]):
                found.append((where, group, param, self.state[param]))
                staying.append(param)
        if staying and find_shared(*self._memory(found)):
            # Whether one of those that stay is in the way is said when its gradient comes.
            found = [entry for entry in found if entry[2].grad is not None]
        check.check_memory(*self._memory(found), self._named_tensors, name)
        members = []
        for where, group, param, state in found:
            if not state:
                assert param.grad is not None
                state = self.state[param]
                state.update(self._new_state(group, param, param.grad))
            layout = (
                absent[id(param)].gradient_layout
                if param.grad is None
                else GradientLayout.of(param.grad)
            )
            members.append(self._member(where, group, param, state, layout))
        return members

    def _memory(
        self, found: list[tuple[check.Where, Group, Tensor, State | None]]
    ) -> tuple[list[Tensor], int]:
        """Parameters and their states, then gradients, and how many the first are."""
        tensors = [param for _, _, param, _ in found]
        for _, group, param, state in found:
            if state:
                tensors += [state[key] for key in self._state_shapes(group, param)]
        n_written = len(tensors)
        tensors += [param.grad for _, _, param, _ in found if param.grad is not None]
        return tensors, n_written

    def _named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All that a step writes or reads, as an error names it."""
        for where, group, param in self._parameters():
            yield str(where), param
            state = self.state.get(param) or {}
            for key in self._state_shapes(group, param) if state else ():
                yield f"state '{key}' of {where}", state[key]
            if param.grad is not None:
                yield f"the gradient of {where}", param.grad

    def _check_states(self, where: check.Where, group: Group, param: Tensor, state: State) -> None:
        name = type(self).__name__
        if "step" not in state:
            raise KeyError(f"step: {name}: {where} has a state without its counter. {check.REPAIR}")
        check.check_step(where, state["step"], param, name)
        for key, shape in self._state_shapes(group, param).items():
            if key not in state:
                raise KeyError(
                    f"{key}: {name}: {where} has no state '{key}', but "
                    f"{', '.join(map(repr, state))}: it was saved by another optimizer, or an "
                    f"option that needs '{key}' was switched on later. {check.REPAIR}"
                )
            check.check_state(where, key, state[key], shape, param, name)
        rms_key = self._rms_key()
        if rms_key in state:
            check.check_rms(where, rms_key, state[rms_key], param, name)

    def _check_steps(self, bucket: Bucket) -> None:
        """Refuses counters that were changed in place to what no step can follow."""
        for member in bucket.members:
            step = member.state["step"]
            check.check_step(self._where(member), step, member.param, type(self).__name__)

    def _can_stay(self, where: check.Where, group: Group, member: Member) -> bool:
        """Whether nothing would be wrong with a member that is absent. What is wrong is refused
        when its gradient comes, and a new plan is made."""
        param, state = member.param, self.state.get(member.param)
        if state is not member.state or not state:
            return False
        try:
            check.check_tensors(where, param, param, type(self).__name__)
            self._check_states(where, group, param, state)
        except (RuntimeError, TypeError, KeyError, ValueError):
            return False
        return True

    def _member(
        self,
        where: check.Where,
        group: Group,
        param: Tensor,
        state: State,
        layout: GradientLayout,
    ) -> Member:
        if self._counts_on_device(group) and isinstance(state["step"], Tensor):
            state["step"] = devices.to_device(state["step"], param.device)
        keys = tuple(self._state_shapes(group, param))
        rule = self._rule(group, param)
        return Member(param, state, where.group, rule, keys, layout, self._rms_key())

    def _where(self, member: Member) -> check.Where:
        params = self.param_groups[member.group]["params"]
        index = next(i for i, param in enumerate(params) if param is member.param)
        return check.Where(self.param_groups, member.group, index)
