"""What a subclass declares about itself: hyper-parameters, states, rule, scalars."""

from __future__ import annotations

from collections.abc import Mapping
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
    """A subclass says which rule a parameter takes (`_rule`), which states that rule has
    (`_state_shapes`), their first values (`_new_state`), and the scalars of a step (`_scalars`)."""

    steps_are_tensors = True
    peer_counts = True  # whether a state of the peer has a counter
    # The 0-d states besides the counter that each step makes from those of the step before.
    history: tuple[str, ...] = ()
    scalars_on_tensors = False  # whether `_scalars` takes tensors too
    backend: str | None = None
    not_numbers: tuple[str, ...] = ("params",)  # options of a group that may be strings
    limits = Limits()  # of the hyper-parameters
    # For each state with a size fewer than its parameter, or with size 1 in its place: the
    # parameter's dimension that it lacks, from the end.
    reduced: Mapping[str, int] = {}
    is_capped = False  # whether a factored rule's cap may change u

    def _check_limits(self, group: Group) -> None:
        """Refuses a hyper-parameter outside its limits."""
        self.limits.check(group, self._name_group)

    def _check_group(self, group: Group) -> None:
        """Refuses a group whose options cannot be carried out. It runs at every step, since scripts
        change the values."""
        self._check_limits(group)

    def _check_keys(self) -> None:
        """Refuses groups that lack a hyper-parameter, as those of another optimizer do."""
        # Not all defaults: torch adds "differentiable" to those of every optimizer.
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
        index = next((k for k, other in enumerate(self.param_groups) if other is group), None)
        return f"{type(self).__name__}: " + ("a group" if index is None else f"group {index}")

    def _check_capturable(self, where: check.Where, group: Group, param: Tensor) -> None:
        if group.get("capturable") and (devices.on_host(param) or param.device.type == "mps"):
            raise AssertionError(
                "If capturable=True, params and state_steps must be on supported devices: "
                f"['cuda', 'xpu']. {type(self).__name__}: {where}"
            )

    def _moves_without_lr(self, group: Group) -> bool:
        """Whether a step with lr = 0 and zero gradients could change weights: 0 / 0 is nan."""
        return not group.get("eps", 1.0)

    def _check_param(self, where: check.Where, group: Group, param: Tensor, grad: Tensor) -> None:
        """Refuses a parameter that this optimizer cannot take."""
        self._check_capturable(where, group, param)

    def _new_state(self, group: Group, param: Tensor, grad: Tensor) -> State:
        """The states at the first step, without the counter. Two parameters of one group get states
        of the same layouts if they have the same layout, and their gradients too."""
        raise NotImplementedError

    def _state_shapes(self, group: Group, param: Tensor) -> dict[str, torch.Size]:
        """The keys and shapes of the parameter's states, in the rule's order."""
        raise NotImplementedError

    def _rule(self, group: Group, param: Tensor) -> str:
        raise NotImplementedError

    def _rms_key(self) -> str | None:
        return None

    def _counts_on_device(self, group: Group) -> bool:
        """Whether the group's step counters are on the devices of their parameters."""
        return self.steps_are_tensors and bool(group.get("capturable"))

    def _counter_dtype(self, group: Group) -> torch.dtype:
        return scalar_dtype(group.get("fused"))

    def _convert_steps(self) -> None:
        """Turns counters that an old checkpoint holds as numbers into tensors."""
        for group in self.param_groups if self.steps_are_tensors else ():
            steps_as_tensors(self.state, group["params"], self._counter_dtype(group))

    def _counts_in_states(self) -> bool:
        """Whether each state has a counter, `step`."""
        return True

    def _first_history(self, group: Group) -> tuple[Any, ...]:
        """What the states `history` hold before the first step."""
        return ()

    def _next_history(self, group: Group, step: Any) -> tuple[Any, ...]:
        """What they hold after `step`, as `_scalars` takes it."""
        return ()

    def _waits_for_device(self, group: Group) -> bool:
        """Whether the host would have to wait for a hyper-parameter."""
        values = (group.get("lr"), group.get("weight_decay"), *(group.get("betas") or ()))
        return any(isinstance(value, Tensor) and not devices.on_host(value) for value in values)

    def _scalars(self, group: Group, step: Any, dtype: torch.dtype) -> dict[str, Any]:
        """The rule's scalars at a step, by name. If `scalars_on_tensors`, `step` may be a tensor
        with many steps. Then each scalar is a number or a tensor. With a `history`, `step` is a
        tuple: the step, and what the states hold before it."""
        raise NotImplementedError

    def _prepare_gradients(self, members: list[Member]) -> None:
        """Changes the gradients in place before the step. It runs after all checks."""

    def _choice(self, group: Group) -> object:
        """The options of a group that choose a rule, its states, or what is refused. When they
        change, a new plan is made."""
        return self._counts_on_device(group)
