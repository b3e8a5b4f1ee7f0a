"""The step that every optimizer shares: gather, plan, scalars, launch. Subclasses know one rule
each."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from .. import backends, check, steps
from ..plan import Bucket, Member
from ..steps import moved
from ..watch import ParamLists
from . import gradients
from .capture import keep_if_capturing, refuse_new_plan_while_capturing
from .planned import Plan, param_lists

Group = dict[str, Any]
State = dict[str, Any]


class FusedOptimizer(torch.optim.Optimizer):
    """Base of all optimizers here. A subclass says which rule a parameter takes (`_rule`), with
    what states (`_state_shapes`), how a state begins (`_new_state`), and a row of scalars
    (`_scalars`)."""

    steps_are_tensors = True
    scalars_on_tensors = False  # whether `_scalars` takes tensors too
    backend: str | None = None
    _plan: Plan | None = None

    def __init__(self, params: Any, defaults: dict[str, Any], backend: str | None) -> None:
        self.backend = backends.check_name(backend)
        self._captured: list[Plan] = []  # what graphs read, for as long as they may be replayed
        super().__init__(params, defaults)

    # What a subclass defines.

    def _check_group(self, group: Group) -> None:
        """Refuses a group whose hyper-parameters cannot be carried out."""
        decay = group["weight_decay"]
        if isinstance(decay, float) and decay != decay:  # the rules would take it for none
            raise ValueError(f"{type(self).__name__}: weight_decay should be a number but is: nan")

    def _check_capturable(self, where: check.Where, group: Group, param: Tensor) -> None:
        if group["capturable"] and (steps.on_host(param) or param.device.type == "mps"):
            raise AssertionError(
                "If capturable=True, params and state_steps must be on supported devices: "
                f"['cuda', 'xpu']. {type(self).__name__}: {where}"
            )

    def _check_param(self, where: check.Where, group: Group, param: Tensor, grad: Tensor) -> None:
        """Refuses a parameter that this optimizer cannot take."""

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
        return False

    def _is_away(self, group: Group) -> bool:
        """Whether the host would have to wait for a hyper-parameter."""
        values = (group.get("lr"), *(group.get("betas") or ()))
        return any(isinstance(value, Tensor) and not steps.on_host(value) for value in values)

    def _scalars(self, group: Group, step: Any, dtype: torch.dtype) -> dict[str, Any]:
        """The rule's scalars at a step, by name. If `scalars_on_tensors`, `step` may be a tensor of
        many steps; then each scalar is a number or a tensor."""
        raise NotImplementedError

    def _prepare_gradients(self, members: list[Member]) -> None:
        """Changes the gradients before the step, in place, when nothing can be refused any more."""

    # The step.

    # torch.compile would trace the plan's Python, and anew whenever an option changes. The public
    # way to say so loads the compiler at once.
    @torch._disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates all parameters that have a gradient.

        Arguments:
            closure: evaluates the model again, with gradients enabled, and returns the loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._check_group(group)
        plan = self._plan
        lists = param_lists(self)
        if plan is None or self._is_stale(plan, lists):
            refuse_new_plan_while_capturing(self, plan)
            plan = self._plan = self._make_plan()
        if plan.devices and not plan.captured:
            keep_if_capturing(self, plan)
        if plan.steps is not None:
            rows = self._rows(plan)
            self._prepare_gradients(plan.members)
            self._launch(plan, rows)
        return loss

    def _is_stale(self, plan: Plan, lists: ParamLists) -> bool:
        if plan.backend != self.backend or plan.choices != self.choices():
            return True
        moves = plan.moves(lists, self.state)
        if moves == 0:
            return False
        if plan.captured:  # the graph goes on with the old addresses, so nobody may use it again
            self._plan = None
        return moves < 0 or plan.captured

    def choices(self) -> list[Any]:
        """Of every group, the options that choose a rule, its states, or what is refused."""
        return [self._choice(group) for group in self.param_groups]

    def _choice(self, group: Group) -> object:
        """Those options of one group; a plan is made anew when they change."""
        return None

    def _launch(self, plan: Plan, rows: list[Tensor]) -> None:
        assert plan.steps is not None
        grad_scale = getattr(self, "grad_scale", None)
        found_inf = getattr(self, "found_inf", None)
        inv_grad_scale = None if grad_scale is None else gradients.inverse(grad_scale)
        plan.run(rows, inv_grad_scale, found_inf)
        plan.steps.count(found_inf)
        if inv_grad_scale is not None:
            params = (member.param for member in plan.members)
            gradients.unscale(params, inv_grad_scale, found_inf)

    def _rows(self, plan: Plan) -> list[Tensor]:
        """The scalars of each bucket, on the host if all that they depend on is there, else on the
        bucket's device."""
        assert plan.steps is not None
        own = plan.counted_away
        if plan.away:
            groups = {k for k, group in enumerate(self.param_groups) if self._is_away(group)}
            if groups:
                own = own.union(k for k in plan.away if not groups.isdisjoint(plan.groups[k]))
        if len(own) < len(plan.buckets):
            coming = plan.steps.next_of_all()
            each = plan.steps.next_of_each() if coming is None else coming
        rows = []
        for k, bucket in enumerate(plan.buckets):
            if k in own:
                rows.append(self._device_rows(bucket, plan.coming_steps(k)()))
            else:
                bucket.assign_rows(each)
                rows.append(self._scalar_rows(bucket))
        return rows

    def _device_rows(self, bucket: Bucket, step: Tensor) -> Tensor:
        """A row for each member, in a number of calls that depends on the groups alone."""
        bucket.assign_own_rows()
        dtype = bucket.members[0].param.dtype
        # What is known goes to the device as an argument of one launch: it adds to -0, exactly.
        rows = step.new_full((1 + len(bucket.rule.scalars), len(bucket.members)), -0.0)
        known: list[tuple[Tensor, float]] = []
        computed: list[tuple[Tensor, Tensor]] = []
        first = 0
        for index, run in groupby(member.group for member in bucket.members):
            last = first + len(list(run))
            group = self.param_groups[index]
            sign = -1.0 if group.get("maximize") else 1.0
            scalars = self._scalars(group, step[first:last], dtype)
            values = (sign, *bucket.rule.row(scalars))
            for row, value in zip(rows[:, first:last].unbind(), values, strict=True):
                if isinstance(value, Tensor):
                    computed.append((row, value.expand_as(row)))
                else:
                    known.append((row, float(value)))
            first = last
        torch._foreach_add_([row for row, _ in known], [value for _, value in known])
        if computed:
            torch._foreach_copy_([row for row, _ in computed], [value for _, value in computed])
        return rows.t().contiguous()

    def _scalar_rows(self, bucket: Bucket) -> Tensor:
        dtype = bucket.members[0].param.dtype
        rows = []
        for index, step in bucket.keys:
            group = self.param_groups[index]
            sign = -1.0 if group.get("maximize") else 1.0
            rows.append((sign, *bucket.rule.row(self._scalars(group, step, dtype))))
        return torch.tensor(rows, dtype=torch.float64, device="cpu")

    def _make_plan(self) -> Plan:
        """Checks everything first; states are made only when nothing can be refused any more."""
        name = type(self).__name__
        found = []
        chosen: set[torch.device] = set()
        first: dict[int, check.Where] = {}
        for index, group in enumerate(self.param_groups):
            for i, param in enumerate(group["params"]):
                grad = param.grad
                if grad is None:
                    continue
                where = check.Where(self.param_groups, index, i)
                check.check_only_once(first, where, param, name)
                self._check_param(where, group, param, grad)
                check.check_tensors(where, param, grad, name)
                if param.device not in chosen:
                    backends.choose(self.backend, param.device, where)
                    chosen.add(param.device)
                state = self.state.get(param)
                if state:
                    if "step" not in state:
                        raise KeyError(f"step: {name}: {where} has a state without its counter")
                    for key, shape in self._state_shapes(group, param).items():
                        # A missing one is the peers' KeyError: an option was switched on later.
                        check.check_state(where, key, state[key], shape, param, name)
                found.append((index, group, param, grad))
        members = []
        for index, group, param, grad in found:
            state = self.state[param]
            if not state:
                state.update(self._new_state(group, param, grad))
            if self._counts_on_device(group) and isinstance(state["step"], Tensor):
                state["step"] = moved(state["step"], param.device)
            keys = tuple(self._state_shapes(group, param))
            rule = self._rule(group, param)
            members.append(Member(param, state, index, rule, keys, self._rms_key()))
        return Plan(self, members)

    def where(self, member: Member) -> check.Where:
        params = self.param_groups[member.group]["params"]
        index = next(i for i, param in enumerate(params) if param is member.param)
        return check.Where(self.param_groups, member.group, index)

    # Saving and loading.

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "backend": self.backend}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_captured", [])
        self._plan = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict of ours or of the peer. States keep the dtype they were saved in:
        torch would round them to the parameter's, and a bfloat16 run would not go on as it was."""
        seen: dict[str, Any] = {}

        def remember(_: Any, loaded: dict[str, Any]) -> None:
            seen.update(loaded)

        def restore(_: Any) -> None:
            self._restore_dtypes(seen)

        before = self.register_load_state_dict_pre_hook(remember)
        after = self.register_load_state_dict_post_hook(restore, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()
        self._plan = None

    def _restore_dtypes(self, loaded: dict[str, Any]) -> None:
        saved_ids = [i for group in loaded["param_groups"] for i in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for saved_id, param in zip(saved_ids, params, strict=True):
            for key, value in loaded["state"].get(saved_id, {}).items():
                if key != "step" and isinstance(value, Tensor) and value.is_floating_point():
                    now = self.state[param][key]
                    if now.dtype != value.dtype:
                        self.state[param][key] = value.detach().clone().to(param.device)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; numbers given as strings are converted."""
        if isinstance(param_group, dict):
            for key, value in param_group.items():
                if key in self.defaults and key != "params":
                    param_group[key] = check.number(value, key)
        super().add_param_group(param_group)
        self._plan = None
