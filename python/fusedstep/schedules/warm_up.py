"""WarmUp: puts a polynomial warm-up before any schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ..optim.hyperparams import scalar
from ..words import one_of_two
from . import checks, formulas
from .schedule import check_groups, check_learning_rates, set_lr


class ByStep(LRScheduler):
    """A learning rate that a function of the step gives, the same for all groups.

    Example:
        >>> opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        >>> ByStep(opt, lambda step: 0.1 / (step + 1)).get_last_lr()
        [0.1]
    """

    def __init__(self, optimizer: Optimizer, function: Callable[[int], Any]) -> None:
        self.function = function
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        """The learning rate of every group at this step."""
        return [scalar(self.function(self.last_epoch))] * len(self.optimizer.param_groups)

    def state_dict(self) -> dict[str, Any]:
        """The step; a function cannot be saved."""
        return {key: value for key, value in super().state_dict().items() if key != "function"}


class WarmUp(LRScheduler):
    """lr = lr0 (s / w)^power for w steps, then the schedule's lr at step s - w; lr0 is its learning
    rate at step 0.

    The schedule may be of any kind. It must be new and have no warm-up of its own; it is not
    stepped until the warm-up is over. If it follows a metric, `step` passes the metric on from
    then on.

    transformers' class for TensorFlow has the other names: `WarmUp(optimizer=opt,
    initial_learning_rate=1e-3, decay_schedule_fn=lambda step: ..., warmup_steps=100)`.

    Arguments:
        schedule: what follows the warm-up.
        warmup_steps: the length of the warm-up, w.
        power: the exponent of the ramp; 1: it is straight.
        optimizer: whose learning rate it is, if `decay_schedule_fn` is a function.
        initial_learning_rate: lr0, if it is not the schedule's first learning rate.
        decay_schedule_fn: TensorFlow's name of `schedule`. Here it may be a function too: from the
            step after the warm-up to the learning rate.
        name: what `get_config` says; it has no effect.

    Example:
        >>> opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        >>> schedule = WarmUp(torch.optim.lr_scheduler.StepLR(opt, 30), warmup_steps=2, power=2.0)
        >>> opt.step(), schedule.step(), schedule.get_last_lr()
        (None, None, [0.125])
    """

    def __init__(
        self,
        schedule: Any = None,
        warmup_steps: int | None = None,
        power: float = 1.0,
        *,
        optimizer: Optimizer | None = None,
        initial_learning_rate: float | None = None,
        decay_schedule_fn: Any = None,
        name: str | None = None,
    ) -> None:
        given = one_of_two(
            "schedule", schedule, None, "decay_schedule_fn", decay_schedule_fn, "WarmUp"
        )
        if warmup_steps is None:
            raise TypeError("WarmUp: warmup_steps is missing: give the length of the warm-up")
        schedule = _schedule_of(given, optimizer)
        made = getattr(schedule, "last_epoch", 0)
        if made > 0:
            raise ValueError(
                f"WarmUp: schedule should be at its beginning but has made {made} steps. To "
                "resume, wrap a new schedule and load the state."
            )
        check_learning_rates(schedule.optimizer, "WarmUp")
        self.schedule = schedule
        self.optimizer = schedule.optimizer
        self.warmup_steps = checks.not_negative(warmup_steps, "warmup_steps", "WarmUp")
        self.power = checks.not_negative(power, "power", "WarmUp")
        self.first_lrs: list[Any] = [scalar(g["lr"]) for g in self.optimizer.param_groups]
        self.base_lrs: list[Any] = [*self.first_lrs]
        if initial_learning_rate is not None:
            lr0 = checks.not_negative(initial_learning_rate, "initial_learning_rate", "WarmUp")
            self.base_lrs = [lr0] * len(self.base_lrs)
        if not any(self.base_lrs):
            raise ValueError(
                "WarmUp: schedule begins with a learning rate of 0. Does it have a warm-up of its "
                "own? Leave one of the two out."
            )
        self.name, self._given = name, given
        if hasattr(schedule, "total_steps"):  # accelerate reads OneCycleLR's before it steps
            self.total_steps = schedule.total_steps + self.warmup_steps
        self.last_epoch = -1
        self._step_count = 0
        self.step()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], optimizer: Optimizer | None = None) -> WarmUp:
        """A warm-up with the settings that `get_config` returned, for this optimizer.

        Example:
            >>> opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
            >>> config = {"decay_schedule_fn": lambda step: 0.5, "warmup_steps": 4}
            >>> WarmUp.from_config(config, opt).warmup_steps
            4
        """
        return cls(optimizer=optimizer, **config)

    def get_config(self) -> dict[str, Any]:
        """The settings, by TensorFlow's names."""
        return {
            "initial_learning_rate": self.base_lrs[0],
            "decay_schedule_fn": self._given,
            "warmup_steps": self.warmup_steps,
            "power": self.power,
            "name": self.name,
        }

    def step(self, *metrics: Any) -> None:
        """Goes on to the next step; `metrics` are for a schedule that follows a metric."""
        follows = isinstance(self.schedule, ReduceLROnPlateau)
        # SequentialLR of older torch versions begins with step(0).
        if metrics and not follows and metrics != (self.last_epoch + 1,):
            raise ValueError(
                f"WarmUp: {type(self.schedule).__name__} is no ReduceLROnPlateau and takes no "
                "metric, and step() always goes on by one step: leave out "
                f"{', '.join(map(repr, metrics))}."
            )
        self._step_count += 1
        self._update_lr(None, *(metrics if follows else ()))

    def _update_lr(self, epoch: int | None = None, *metrics: Any) -> None:
        # SequentialLR calls this with epoch=0 when it switches to this schedule.
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        if self._is_over():
            self.schedule.step(*metrics)
            return
        self._set(self.get_lr())

    def _set(self, lrs: list[Any]) -> None:
        check_groups(self.optimizer, len(lrs), "WarmUp")
        for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
            set_lr(group, lr)
        self._last_lr = lrs

    def get_lr(self) -> list[Any]:
        """The learning rates during the warm-up, and at step w, where they are the schedule's
        first ones."""
        if self.last_epoch >= self.warmup_steps:
            return [*self.first_lrs]
        share = formulas.ramp(self.last_epoch, self.warmup_steps, self.power)
        return [lr * share for lr in self.base_lrs]

    def _is_over(self) -> bool:
        return self.last_epoch >= self.warmup_steps + 1

    def get_last_lr(self) -> list[Any]:
        """The learning rates that the last step set."""
        last: list[Any] = self.schedule.get_last_lr() if self._is_over() else self._last_lr
        return last

    def state_dict(self) -> dict[str, Any]:
        """The step, the settings, and the state of the schedule."""
        return {
            "warmup_steps": self.warmup_steps,
            "power": self.power,
            "last_epoch": self.last_epoch,
            "base_lrs": [*self.base_lrs],
            "first_lrs": [*self.first_lrs],
            "_last_lr": [*self._last_lr],
            "schedule": self.schedule.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` returned; warm-up and kind of schedule must be the same."""
        for key in ("warmup_steps", "power"):
            if state_dict[key] != getattr(self, key):
                raise ValueError(
                    f"WarmUp: the state has {key}={state_dict[key]}, but this WarmUp has "
                    f"{getattr(self, key)}. Make it with the same {key}."
                )
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = self.last_epoch + 1
        self.base_lrs = [*state_dict["base_lrs"]]
        self.first_lrs = [*state_dict.get("first_lrs", self.base_lrs)]
        self._last_lr = [*state_dict["_last_lr"]]
        # Some schedules set the groups' learning rates when they load. During the warm-up we set
        # them back.
        before = [copy(group["lr"]) for group in self.optimizer.param_groups]
        self.schedule.load_state_dict(state_dict["schedule"])
        if not self._is_over():
            for group, lr in zip(self.optimizer.param_groups, before, strict=True):
                set_lr(group, lr)


def _schedule_of(given: Any, optimizer: Optimizer | None) -> Any:
    """The schedule that follows the warm-up. Of a function one is made."""
    if all(hasattr(given, name) for name in ("optimizer", "step", "get_last_lr")):
        if optimizer is not None and optimizer is not given.optimizer:
            raise ValueError(
                "WarmUp: optimizer is not the schedule's. Leave it out: the schedule has its own."
            )
        return given
    if not callable(given):
        raise TypeError(
            "WarmUp: schedule should be a learning rate schedule of an optimizer but is: "
            f"{type(given).__name__}"
        )
    if optimizer is None:
        raise TypeError(
            "WarmUp: decay_schedule_fn is a function, which has no optimizer: give optimizer=... "
            "too, or a schedule of an optimizer."
        )
    return ByStep(optimizer, given)
