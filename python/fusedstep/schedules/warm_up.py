"""WarmUp: any schedule, after a polynomial warm-up."""

from __future__ import annotations

from typing import Any

from torch.optim.lr_scheduler import LRScheduler

from ..optim.scalars import scalar
from . import checks, formulas
from .schedule import check_learning_rates, set_lr


class WarmUp(LRScheduler):
    """lr = lr0 (s / w)^power for w steps, then what the schedule says at step s - w; lr0 is its
    learning rate at step 0.

    The schedule is one that was just made, of any kind: it sleeps until the warm-up is over. One
    that follows a metric gets it from `step` from then on.

    Arguments:
        schedule: what follows the warm-up.
        warmup_steps: w.

    Example:
        >>> opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        >>> schedule = WarmUp(torch.optim.lr_scheduler.StepLR(opt, 30), warmup_steps=2, power=2.0)
        >>> opt.step(), schedule.step(), schedule.get_last_lr()
        (None, None, [0.125])
    """

    def __init__(self, schedule: Any, warmup_steps: int, power: float = 1.0) -> None:
        if not all(hasattr(schedule, name) for name in ("optimizer", "step", "get_last_lr")):
            raise TypeError(
                "WarmUp: schedule should be a learning rate schedule of an optimizer but is: "
                f"{type(schedule).__name__}"
            )
        if schedule.last_epoch > 0:
            raise ValueError(
                "WarmUp: schedule should be at its beginning but has made "
                f"{schedule.last_epoch} steps. To resume, wrap a new one and load the state."
            )
        check_learning_rates(schedule.optimizer, "WarmUp")
        self.schedule = schedule
        self.optimizer = schedule.optimizer
        self.warmup_steps = checks.count(warmup_steps, "warmup_steps", "WarmUp")
        self.power = checks.count(power, "power", "WarmUp")
        self.base_lrs: list[Any] = [scalar(g["lr"]) for g in self.optimizer.param_groups]
        self.last_epoch = -1
        self._advance()

    def step(self, *metrics: Any) -> None:
        """Goes on to the next step; `metrics` are for a schedule that follows one."""
        self._advance(*metrics)

    def _advance(self, *metrics: Any) -> None:
        self.last_epoch += 1
        if self._is_over():
            self.schedule.step(*metrics)
            return
        share = 1.0  # the step after the warm-up is the schedule's first
        if self.last_epoch < self.warmup_steps:
            share = formulas.ramp(self.last_epoch, self.warmup_steps, self.power)
        lrs = [lr * share for lr in self.base_lrs]
        for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
            set_lr(group, lr)
        self._last_lr = lrs

    def _is_over(self) -> bool:
        return self.last_epoch >= self.warmup_steps + 1

    def get_last_lr(self) -> list[Any]:
        """The learning rates that the last step set."""
        last: list[Any] = self.schedule.get_last_lr() if self._is_over() else self._last_lr
        return last

    def state_dict(self) -> dict[str, Any]:
        """Where it is, and the state of the schedule."""
        return {
            "last_epoch": self.last_epoch,
            "base_lrs": [*self.base_lrs],
            "_last_lr": [*self._last_lr],
            "schedule": self.schedule.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` gave, with the same warm-up and a schedule of the same kind."""
        self.last_epoch = state_dict["last_epoch"]
        self.base_lrs = [*state_dict["base_lrs"]]
        self._last_lr = [*state_dict["_last_lr"]]
        self.schedule.load_state_dict(state_dict["schedule"])
