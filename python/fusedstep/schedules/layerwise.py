"""Schedules for optimizers that step one parameter at a time, in hooks of the backward pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def optimizers_of_layers(optimizer: Any) -> dict[Tensor, Optimizer] | None:
    """The optimizer of each parameter if `optimizer` is transformers' LayerWiseDummyOptimizer, else
    None."""
    return getattr(optimizer, "optimizer_dict", None)


class LayerWiseSchedule(LRScheduler):
    """One schedule per parameter. A hook steps each when the gradient of its parameter is complete,
    so `step` does nothing. Make it after the hooks that step the optimizers: hooks run in the order
    in which they were registered.

    Arguments:
        schedules: the schedule of each parameter's own optimizer.

    Example:
        >>> from fusedstep.schedules import get_constant_schedule
        >>> p = torch.nn.Parameter(torch.zeros(1))
        >>> schedule = LayerWiseSchedule({p: get_constant_schedule(torch.optim.SGD([p], lr=0.5))})
        >>> schedule.get_last_lr()
        [0.5]
    """

    def __init__(self, schedules: dict[Tensor, Any]) -> None:
        self.schedules = schedules
        self._step_count = 0  # accelerate counts it up where gradients are accumulated
        for param in schedules:
            if param.requires_grad:
                param.register_post_accumulate_grad_hook(self._step_one)

    def _step_one(self, param: Tensor) -> None:
        self.schedules[param].step()

    def step(self, *_: Any) -> None:
        """Does nothing: the hooks have stepped."""

    def get_last_lr(self) -> list[Any]:
        """The learning rates of all groups of all optimizers."""
        return [lr for schedule in self.schedules.values() for lr in schedule.get_last_lr()]

    def state_dict(self) -> dict[str, Any]:
        """The state of each schedule, in the order of the parameters."""
        return {"schedules": [own.state_dict() for own in self.schedules.values()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` returned."""
        states = state_dict["schedules"]
        if len(states) != len(self.schedules):
            raise ValueError(
                f"the state holds {len(states)} schedules, but there are {len(self.schedules)} "
                "parameters. Load a checkpoint of this model."
            )
        for own, state in zip(self.schedules.values(), states, strict=True):
            own.load_state_dict(state)
