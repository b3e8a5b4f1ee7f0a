"""AdafactorSchedule: shows the step size that Adafactor chose as a scheduler's value."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..docstrings import describes
from ..optim.hyperparams import scalar
from ..plan import devices
from ..schedules import formulas

with_arguments = describes(
    {
        "optimizer": "an Adafactor of transformers' dialect with ``relative_step=True``.",
        "initial_lr": "what is shown for a group before its first step.",
    }
)


@with_arguments
class AdafactorSchedule(LambdaLR):
    """The step size of each group's first parameter at its last step (``optimizer._get_lr``), or
    ``initial_lr`` if the parameter has no gradient. Mirrors
    ``transformers.optimization.AdafactorSchedule``. Step it after the optimizer and before
    gradients are cleared. Values are Python floats; one on a device is only read by
    ``get_last_lr``.

    Example:
        >>> from fusedstep.hf import Adafactor
        >>> opt = Adafactor(torch.nn.Linear(8, 8).parameters())
        >>> schedule = AdafactorSchedule(opt)
        >>> schedule.get_last_lr()
        [0.0]
    """

    def __init__(self, optimizer: Optimizer, initial_lr: float = 0.0) -> None:
        if not hasattr(optimizer, "_get_lr"):
            raise TypeError(
                "AdafactorSchedule needs an Adafactor of transformers' dialect, which knows its "
                f"own step size, but got {type(optimizer).__name__}. Pass the raw optimizer, "
                "not a wrapper."
            )

        for index, group in enumerate(optimizer.param_groups):
            if not group.get("relative_step", True):
                raise ValueError(
                    f"AdafactorSchedule shows the step sizes that relative_step=True chooses, but "
                    f"group {index} has relative_step=False: its lr would be replaced by "
                    f"{initial_lr=}. Use another schedule, or none."
                )

        for group in optimizer.param_groups:
            group["initial_lr"] = initial_lr
        super().__init__(optimizer, formulas.constant)  # unused: `get_lr` replaces it
        for group in optimizer.param_groups:
            del group["initial_lr"]

    def get_lr(self) -> list[Any]:
        """The step size of every group. One on a device stays a tensor."""
        optimizer: Any = self.optimizer
        values = []
        for group, initial in zip(optimizer.param_groups, self.base_lrs, strict=True):
            first = group["params"][0] if group["params"] else None
            state = optimizer.state.get(first) if first is not None else None
            if first is None or first.grad is None or not state:
                values.append(initial)
            else:
                lr = optimizer._get_lr(group, state)
                on_device = isinstance(lr, Tensor) and not devices.on_host(lr)
                values.append(lr if on_device else scalar(lr))
        return values

    def get_last_lr(self) -> list[Any]:
        """The step sizes at the schedule's last step."""
        return [scalar(lr) for lr in self._last_lr]


@with_arguments
def get_adafactor_schedule(optimizer: Optimizer, initial_lr: float = 0.0) -> AdafactorSchedule:
    """The proxy schedule of an Adafactor: ``AdafactorSchedule(optimizer, initial_lr)``.

    Example:
        >>> from fusedstep.hf import Adafactor
        >>> schedule = get_adafactor_schedule(Adafactor(torch.nn.Linear(8, 8).parameters()))
    """
    return AdafactorSchedule(optimizer, initial_lr)
