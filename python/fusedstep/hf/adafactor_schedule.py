"""AdafactorSchedule: the step size that Adafactor chose, where a scheduler is expected."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class AdafactorSchedule(LambdaLR):
    """A proxy whose value is ``optimizer._get_lr`` of each group's first parameter: ``initial_lr``
    before the first step, the step size of the last step afterwards. Mirrors
    ``transformers.optimization.AdafactorSchedule``; values are Python floats.

    Example:
        >>> from fusedstep.hf import Adafactor
        >>> opt = Adafactor(torch.nn.Linear(8, 8).parameters())
        >>> schedule = AdafactorSchedule(opt)
        >>> schedule.get_last_lr()
        [0.0, ...]
    """

    def __init__(self, optimizer: Optimizer, initial_lr: float = 0.0) -> None:
        if not hasattr(optimizer, "_get_lr"):
            raise TypeError(
                "AdafactorSchedule needs an Adafactor of transformers' dialect, which knows its "
                f"own step size, but got {type(optimizer).__name__}. Pass the raw optimizer, "
                "not a wrapper."
            )

        def lr_lambda(_: int) -> float:
            return initial_lr

        for group in optimizer.param_groups:
            group["initial_lr"] = initial_lr
        super().__init__(optimizer, lr_lambda)
        for group in optimizer.param_groups:
            del group["initial_lr"]

    def get_lr(self) -> list[Any]:
        """The current step size of every group; what a group without gradients had before."""
        optimizer: Any = self.optimizer
        values = []
        for group, initial in zip(optimizer.param_groups, self.base_lrs, strict=True):
            first = group["params"][0] if group["params"] else None
            state = optimizer.state.get(first) if first is not None else None
            if first is None or first.grad is None or not state:
                values.append(initial)
            else:
                values.append(float(optimizer._get_lr(group, state)))
        return values


def get_adafactor_schedule(optimizer: Optimizer, initial_lr: float = 0.0) -> AdafactorSchedule:
    """The proxy schedule of an Adafactor: ``AdafactorSchedule(optimizer, initial_lr)``.

    Example:
        >>> from fusedstep.hf import Adafactor
        >>> schedule = get_adafactor_schedule(Adafactor(torch.nn.Linear(8, 8).parameters()))
    """
    return AdafactorSchedule(optimizer, initial_lr)
