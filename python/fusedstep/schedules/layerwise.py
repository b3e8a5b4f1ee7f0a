"""Schedules for optimizers that step parameter by parameter, in hooks of the backward pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def optimizers_of_layers(optimizer: Any) -> dict[Tensor, Optimizer] | None:
    """The optimizer of each parameter where `optimizer` is transformers' stand-in for them
    (LayerWiseDummyOptimizer), else None."""
    return getattr(optimizer, "optimizer_dict", None)


class LayerWiseSchedule:
    """One schedule a parameter, each stepped by a hook when its parameter's gradient is done. To be
    made after the hooks that step the optimizers. Its own `step` has nothing left to do.

    Example:
        >>> from fusedstep.schedules import get_constant_schedule
        >>> p = torch.nn.Parameter(torch.zeros(1))
        >>> schedule = LayerWiseSchedule({p: get_constant_schedule(torch.optim.SGD([p], lr=0.5))})
        >>> schedule.get_last_lr()
        [0.5]
    """

    def __init__(self, schedules: dict[Tensor, Any]) -> None:
        self.schedules = schedules
        for param in schedules:
            if param.requires_grad:
                param.register_post_accumulate_grad_hook(self._step_one)

    def _step_one(self, param: Tensor) -> None:
        self.schedules[param].step()

    def step(self, *_: Any) -> None:
        """Nothing: the hooks have stepped."""

    def get_last_lr(self) -> list[float]:
        """The learning rates of all groups of all parameters' optimizers."""
        return [lr for schedule in self.schedules.values() for lr in schedule.get_last_lr()]

    def state_dict(self) -> dict[str, Any]:
        """The state of each schedule, in the order of the parameters."""
        return {"schedules": [own.state_dict() for own in self.schedules.values()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` gave."""
        states = state_dict["schedules"]
        if len(states) != len(self.schedules):
            raise ValueError(
                f"the state holds {len(states)} schedules, but there are {len(self.schedules)} "
                "parameters. Load a checkpoint of the same model."
            )
        for own, state in zip(self.schedules.values(), states, strict=True):
            own.load_state_dict(state)
