"""The step that every optimizer shares: gather, plan, scalars, launch. Subclasses know one rule
each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import backends, check
from ..plan import Bucket, Member, gradient_cells, make_buckets
from ..steps import IntSteps, TensorSteps
from ..watch import ParamLists, Watch, watch

Group = dict[str, Any]
State = dict[str, Any]


class Plan:
    """What a step can use again as long as nothing moved: buckets, counters, and the watch on
    both."""

    def __init__(self, optimizer: FusedOptimizer, members: list[Member]) -> None:
        self.members = members
        self.backend = optimizer.backend
        self.choices = optimizer.choices()
        counters = TensorSteps if optimizer.steps_are_tensors else IntSteps
        self.steps = counters([member.state for member in members]) if members else None
        self.buckets = make_buckets(members)
        self.launchers = [
            backends.choose(optimizer.backend, bucket.device, optimizer.where(bucket.members[0]))
            for bucket in self.buckets
        ]
        for launcher, bucket in zip(self.launchers, self.buckets, strict=True):
            launcher.prepare(bucket)
        self.written = [member.param for member in members]
        self.watch = self._make_watch(optimizer)

    def _make_watch(self, optimizer: FusedOptimizer) -> Watch:
        lists = param_lists(optimizer)
        position = {id(member.param): index for index, member in enumerate(self.members)}
        cells = gradient_cells(self.buckets)
        keys = {key for member in self.members for key in member.state_keys}
        keys |= {member.rms_key for member in self.members if member.rms_key}
        if optimizer.steps_are_tensors:
            keys.add("step")
        cell_of_each = [
            cells.get(position.get(id(param), -1), 0) for params in lists for param in params
        ]
        return watch(lists, optimizer.state, tuple(sorted(keys)), cell_of_each)

    def scratch_bytes(self) -> int:
        """Memory that the launches use beside the tensors: scratch, and copies of strided
        tensors."""
        copies = sum(s.copy.nbytes for bucket in self.buckets for s in bucket.stages)
        return copies + sum(
            launcher.scratch_bytes(bucket)
            for launcher, bucket in zip(self.launchers, self.buckets, strict=True)
        )


def param_lists(optimizer: torch.optim.Optimizer) -> ParamLists:
    return [group["params"] for group in optimizer.param_groups]


def inverse(grad_scale: Tensor) -> Tensor:
    """1 / grad_scale, in float64 where the device has it."""
    wide = torch.float32 if grad_scale.device.type == "mps" else torch.float64
    return grad_scale.to(wide).reciprocal()


class FusedOptimizer(torch.optim.Optimizer):
    """Base of all optimizers here. A subclass says which rule a parameter takes (`_rule`), with
    what states (`_state_shapes`), how a state begins (`_new_state`), and a row of scalars
    (`_scalars`)."""

    steps_are_tensors = True
    backend: str | None = None
    _plan: Plan | None = None

    def __init__(self, params: Any, defaults: dict[str, Any], backend: str | None) -> None:
        self.backend = backends.check_name(backend)
        super().__init__(params, defaults)

    # What a subclass defines.

    def _check_group(self, group: Group) -> None:
        """Refuses a group whose hyper-parameters cannot be carried out."""

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

    def _scalars(self, group: Group, step: float, dtype: torch.dtype) -> tuple[float, ...]:
        raise NotImplementedError

    # The step.

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
            plan = self._plan = self._make_plan()
        if plan.steps is not None:
            self._launch(plan)
        return loss

    def _is_stale(self, plan: Plan, lists: ParamLists) -> bool:
        return (
            plan.backend != self.backend
            or plan.choices != self.choices()
            or plan.watch.check(lists, self.state) < 0
        )

    def choices(self) -> list[Any]:
        """Of every group, the options that choose a rule, its states, or what is refused."""
        return [self._choice(group) for group in self.param_groups]

    def _choice(self, group: Group) -> object:
        """Those options of one group; a plan is made anew when they change."""
        return None

    def _launch(self, plan: Plan) -> None:
        assert plan.steps is not None
        grad_scale = getattr(self, "grad_scale", None)
        found_inf = getattr(self, "found_inf", None)
        inv_grad_scale = None if grad_scale is None else inverse(grad_scale)
        steps = plan.steps.next_of_all()
        each = plan.steps.next_of_each() if steps is None else steps
        for bucket in plan.buckets:
            bucket.assign_rows(each)
        rows = [self._scalar_rows(bucket) for bucket in plan.buckets]
        torch.autograd.graph.increment_version(plan.written)
        for launcher, bucket, scalars in zip(plan.launchers, plan.buckets, rows, strict=True):
            if bucket.stages:
                bucket.copy_in()
            launcher.launch(bucket, scalars, inv_grad_scale, found_inf)
            if bucket.stages:
                bucket.copy_out()
        plan.steps.count(found_inf)
        if inv_grad_scale is not None:
            self._unscale(plan, inv_grad_scale, found_inf)

    def _scalar_rows(self, bucket: Bucket) -> Tensor:
        dtype = bucket.members[0].param.dtype
        rows = []
        for index, step in bucket.keys:
            group = self.param_groups[index]
            sign = -1.0 if group.get("maximize") else 1.0
            rows.append((sign, *self._scalars(group, step, dtype)))
        return torch.tensor(rows, dtype=torch.float64)

    @staticmethod
    def _unscale(plan: Plan, inv_grad_scale: Tensor, found_inf: Tensor | None) -> None:
        """Leaves unscaled gradients behind, as torch's fused optimizers do."""
        factor = inv_grad_scale
        if found_inf is not None:
            factor = torch.where(found_inf.to(factor.device) != 0, torch.ones_like(factor), factor)
        unscaled: dict[int, Tensor] = {}  # by the gradient, which parameters may share
        for member in plan.members:
            grad = member.param.grad
            assert grad is not None
            if id(grad) not in unscaled:
                shared = any(s == 0 for s in grad.stride())  # an expanded one cannot be written
                scale = factor.to(grad.device, grad.dtype)
                unscaled[id(grad)] = grad * scale if shared else grad.mul_(scale)
            if unscaled[id(grad)] is not grad:
                member.param.grad = unscaled[id(grad)]

    def _make_plan(self) -> Plan:
        """Checks everything first; states are made only when nothing can be refused any more."""
        name = type(self).__name__
        found = []
        for index, group in enumerate(self.param_groups):
            for i, param in enumerate(group["params"]):
                grad = param.grad
                if grad is None:
                    continue
                where = check.Where(self.param_groups, index, i)
                self._check_param(where, group, param, grad)
                check.check_tensors(where, param, grad, name)
                backends.choose(self.backend, param.device, where)
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
