"""What an optimizer declares of itself: hyper-parameters, states, rule, scalars."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import check
from ..plan import devices
from ..plan.bucket import Member
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
        """The states at the first step, but for the counter. They lie alike for parameters of one
        group that lie alike, and whose gradients do."""
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

    def _counter_dtype(self, group: Group) -> torch.dtype:
        return scalar_dtype(group.get("fused"))

    def _convert_steps(self) -> None:
        """Makes tensors of counters that an old checkpoint holds as numbers."""
        for group in self.param_groups if self.steps_are_tensors else ():
            steps_as_tensors(self.state, group["params"], self._counter_dtype(group))

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
