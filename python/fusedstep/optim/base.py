"""The step that all optimizers share: check, plan, scalars, launch. A subclass adds its rule."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from .. import backends, check
from ..plan import devices
from ..plan.counters import FirstSteps, IntCounters, TensorCounters
from ..plan.cuda_graphs import check_capture, refuse_new_plan_while_capturing
from ..plan.exchange_layout import ExchangeError, ExchangeLayout
from ..plan.history import HistoryCounters
from ..plan.launcher import BackendName
from ..plan.plan import MakesCounters, Owner, Plan, collector_paused
from ..plan.rows import HostRows
from ..plan.watch import ParamLists
from . import agreed, gradients
from .checkpoints import load_keeping_dtypes
from .declared import Group, State
from .described import DescribedOptimizer
from .flat_states import keep_own_pieces
from .masters import MasterWeights
from .precision import Precision
from .scalar_rows import rows_of
from .step_hooks import around_step

__all__ = ["FusedOptimizer", "Group", "State"]

Loss = TypeVar("Loss")


class FusedOptimizer(DescribedOptimizer):
    """Base class of all optimizers: one `step` for every rule."""

    _made_for: object = None  # the choices that the plan was made for
    _release: object = None  # of gradients, if it is enabled (`release.py`)

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        backend: BackendName | None,
        max_grad_norm: float | None = None,
        precision: Precision | None = None,
    ) -> None:
        self.backend = backends.check_name(backend)
        self._set_precision(precision or Precision())
        self.max_grad_norm = max_grad_norm
        self._captured: list[Plan] = []  # graphs read their memory, so they are kept
        self._masters = MasterWeights(type(self).__name__)
        super().__init__(params, defaults)

    profile_hook_step = staticmethod(around_step)  # torch.optim puts it around `step`

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], Loss]) -> Loss: ...

    # Otherwise torch.compile traces the plan's Python, and again whenever an option changes. The
    # public torch.compiler.disable would load the compiler at import.
    @torch._disable_dynamo
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates all parameters that have a gradient.

        Arguments:
            closure: runs the model and its backward again, and returns the loss. It is called with
                gradients enabled.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        had_grad = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)  # the public class takes 2 us
        try:
            self._step()
        finally:
            torch._C._set_grad_enabled(had_grad)
        return loss

    def _step(self) -> None:
        self._others_wait = self._max_grad_norm is not None and self._may_share()
        try:
            # First what processes agree on: later, one may refuse the step and wait for none.
            self._checked_step(self._reason_to_skip())
        except ExchangeError:
            raise
        except Exception as error:
            self._tell_others(error)
            raise

    def _checked_step(self, found_inf: Tensor | None) -> None:
        if self._plan is None:
            self._check_keys()
        try:
            for group in self.param_groups:
                self._check_group(group)
        except KeyError:
            self._check_keys()
            raise
        grad_scale = self._from_scaler("grad_scale")
        plan = self._current_plan(self._lists())
        capturing = any(map(devices.is_capturing, plan.devices))
        if capturing and not plan.captured:
            check_capture(self._owner(), plan)
            plan.captured = True
            self._captured.append(plan)
        if plan.counters is not None:
            rows = rows_of(
                plan, self.param_groups, self._scalars, self._waits_for_device, self._check_steps
            )
            self._prepare_gradients(plan.present_members)
            self._launch(plan, rows, grad_scale, found_inf, capturing)
        else:  # other processes may have gradients
            self._prepare_gradients([])
            self._clipped(plan, None, capturing)
            if plan.exchange is not None:
                plan.exchange.join()

    def _launch(
        self,
        plan: Plan,
        rows: list[HostRows | Tensor],
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
        capturing: bool,
    ) -> None:
        assert plan.counters is not None
        inv_grad_scale = None if grad_scale is None else gradients.inverse(grad_scale)
        factor = self._clipped(plan, inv_grad_scale, capturing)
        if self.master_weights:
            self._masters.notice_changes(plan.present_members, self._where, capturing)
        self._run(plan, rows, factor, found_inf, capturing)
        if self.master_weights:
            self._masters.remember(plan.present_members)
        plan.count(found_inf, lambda k, step: self._next_history(self.param_groups[k], step))
        if inv_grad_scale is not None:
            params = (member.param for member in plan.present_members)
            gradients.unscale(params, inv_grad_scale, found_inf)

    def _run(
        self,
        plan: Plan,
        rows: list[HostRows | Tensor],
        factor: Tensor | None,
        found_inf: Tensor | None,
        capturing: bool,
    ) -> None:
        """Updates the parameters. `factor` is that of all gradients, or None."""
        plan.run(rows, factor, found_inf, capturing)

    def _from_scaler(self, name: str) -> Tensor | None:
        """The tensor that a GradScaler set as an attribute, as a 0-d tensor; None if it did not."""
        value = getattr(self, name, None)
        if value is None:
            return None
        if not isinstance(value, Tensor):
            value = torch.tensor(float(value), device="cpu")
        if value.numel() != 1:
            raise ValueError(
                f"{type(self).__name__}: {name} should be one number, as a GradScaler sets it, but "
                f"is a tensor of shape {tuple(value.shape)}"
            )
        return value.reshape(())

    def _reason_to_skip(self) -> Tensor | None:
        """A tensor that is not 0 if the step must change nothing in any process; None if nobody
        asks for that."""
        try:
            found_inf = self._from_scaler("found_inf")
        except ValueError:
            agreed.in_any_process(torch.ones((), device="cpu"), self._parameters)
            raise
        if found_inf is not None:
            return agreed.in_any_process(found_inf, self._parameters)
        if self._may_only_make_states():
            return agreed.in_no_process(agreed.any_gradient(self.param_groups), self._parameters)
        return None

    def _may_only_make_states(self) -> bool:
        """Whether this may be the step by which torch makes states to load a checkpoint into: the
        first one, with lr = 0. If all gradients are zero too, the step makes the states and changes
        nothing. Rules that change nothing then anyway need not ask."""
        return (
            not self.state
            and all(agreed.is_zero(group.get("lr")) for group in self.param_groups)
            and any(map(self._moves_without_lr, self.param_groups))
        )

    def _current_plan(self, lists: ParamLists) -> Plan:
        """The plan of the last step if it still holds, else a new one."""
        plan = self._plan
        made_for = (self.backend, [self._choice(group) for group in self.param_groups])
        if plan is not None and made_for == self._made_for:
            if plan.holds(lists, self.state) and (plan.counters is None or plan.counters.hold()):
                return plan
            if plan.captured:  # its graph still uses the old addresses, so no new step may use it
                self._plan = None
        owner = self._owner()
        self._refuse_capture(owner, lists, plan)
        with collector_paused():
            self._plan = Plan(owner, self._check_and_make_members(plan), lists, self.state)
        self._made_for = made_for
        return self._plan

    def _refuse_capture(self, owner: Owner, lists: ParamLists, old: Plan | None) -> None:
        kinds = {p.device for params in lists for p in params if not devices.on_host(p)}
        if not any(map(devices.is_capturing, kinds)):
            return
        counted = (
            (where, param, self._counts_on_device(group), self.state.get(param, {}).get("step"))
            for where, group, param in self._parameters()
            if param.grad is not None
        )
        refuse_new_plan_while_capturing(owner, counted, old)

    def _lists(self) -> ParamLists:
        """The parameters, a list for each group."""
        lists = (group["params"] for group in self.param_groups)
        return [params if type(params) is list else list(params) for params in lists]

    def _owner(self) -> Owner:
        return Owner(
            name=type(self).__name__,
            choose=self._choose,
            where=self._where,
            counters=self._counters(),
            scalars_on_device=self.scalars_on_tensors,
            exchange=self._exchange_layout(),
        )

    def _counters(self) -> MakesCounters:
        if not self._counts_in_states():
            return FirstSteps
        if self.history:
            return partial(HistoryCounters, self.history)
        return TensorCounters if self.steps_are_tensors else IntCounters

    def _exchange_layout(self) -> ExchangeLayout | None:
        """How processes add up sums of sharded parameters. Elementwise rules have none."""
        return None

    def _tell_others(self, error: Exception) -> None:
        """Tells the processes that share sums with this one that it refused the step."""
        self._join_norm()

    # Saving and loading.

    def __getstate__(self) -> dict[str, Any]:
        own = {
            "backend": self.backend,
            "precision": self.precision,
            "_max_grad_norm": self._max_grad_norm,
        }
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_captured", [])
        self._masters = MasterWeights(type(self).__name__)
        self._set_precision(self.precision)
        self._convert_steps()
        self._plan = self._norm = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict of this class or of its peer. States keep the dtype they were saved
        in, unless `state_dtype` names one or the optimizer widens them."""
        load_keeping_dtypes(self, super().load_state_dict, state_dict)
        keep_own_pieces(self, self.reduced)
        self._masters.forget()
        self._plan = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as torch does. Numbers given as strings are converted."""
        if isinstance(param_group, dict):
            for key, value in param_group.items():
                if key in self.defaults and key not in self.not_numbers:
                    param_group[key] = check.number(value, key)
        super().add_param_group(param_group)
        try:
            self._check_limits(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        self._plan = None
