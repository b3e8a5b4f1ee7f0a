"""Schedule: learning rates that are a function of the step, computed on the host."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..optim.hyperparams import scalar
from . import checks
from .shared_arguments import with_shared_arguments

Factor = Callable[[int], float]


@with_shared_arguments
class Schedule(LambdaLR):
    """lr = initial lr of the group * f(step), with the arguments and the state dict of
    ``torch.optim.lr_scheduler.LambdaLR``.

    Values are Python floats. If the learning rate is a tensor, it is read once, when the schedule
    is made, and then only filled in place: no device sync, and no value aliases the tensor.

    Arguments:
        lr_lambda: f, or one for each group.
        name: what errors call this schedule.

    Example:
        >>> opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=torch.tensor(0.5))
        >>> schedule = Schedule(opt, lambda step: 0.5**step)
        >>> opt.step(), schedule.step()
        (None, None)
        >>> opt.param_groups[0]["lr"], schedule.get_last_lr()
        (tensor(0.2500), [0.25])
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Factor | list[Factor],
        last_epoch: int = -1,
        *,
        name: str = "Schedule",
    ) -> None:
        check_learning_rates(optimizer, name)
        separate_tensors(optimizer, groups=isinstance(lr_lambda, (list, tuple)))
        for group in optimizer.param_groups:
            if last_epoch == -1 or "initial_lr" in group:  # else the base class raises
                group["initial_lr"] = scalar(group.get("initial_lr", group["lr"]))
        super().__init__(optimizer, lr_lambda, last_epoch)

    @property
    def _last_lr(self) -> list[Any]:
        """What `get_last_lr` returns. Where torch sets it depends on its version, and it sets it to
        the groups' tensors, which the next step fills. We keep floats instead."""
        if "_last_lr" not in self.__dict__:
            raise AttributeError("_last_lr")
        last: list[Any] = self.__dict__["_last_lr"]
        return last

    @_last_lr.setter
    def _last_lr(self, lrs: list[Any]) -> None:
        tensors = any(isinstance(lr, Tensor) for lr in lrs)
        self.__dict__["_last_lr"] = self.get_lr() if tensors else lrs

    def get_lr(self) -> list[Any]:
        """The learning rate of every group at this step."""
        check_groups(
            self.optimizer,
            len(self.base_lrs),
            "Schedule",
            "Give the new groups an 'initial_lr' and make a new schedule with "
            f"last_epoch={self.last_epoch - 1}.",
        )
        own = {id(factor): factor for factor in self.lr_lambdas}  # groups often share one
        factors = {key: factor(self.last_epoch) for key, factor in own.items()}
        return [
            float(base * factors[id(factor)])
            for factor, base in zip(self.lr_lambdas, self.base_lrs, strict=True)
        ]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict of this class or of LambdaLR, whose learning rates may be tensors."""
        super().load_state_dict(state_dict)
        self.base_lrs = [scalar(lr) for lr in self.base_lrs]
        self._last_lr = [scalar(lr) for lr in self._last_lr]


def scheduled(
    optimizer: Optimizer,
    last_epoch: int,
    name: str,
    formula: Callable[..., float],
    counts: dict[str, Any],
    settings: dict[str, Any] | None = None,
) -> Schedule:
    """A Schedule of the formula, after a check that no count is negative. The formula is bound by
    `partial`, because a partial can be pickled and a closure cannot."""
    checked = {
        argument: checks.not_negative(value, argument, name) for argument, value in counts.items()
    }
    return Schedule(
        optimizer, partial(formula, **checked, **(settings or {})), last_epoch, name=name
    )


def check_learning_rates(optimizer: Optimizer, name: str) -> None:
    """Raises if the schedule called `name` cannot set the learning rates of this optimizer."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"{name}: optimizer should be a torch.optim.Optimizer but is: "
            f"{type(optimizer).__name__}, which is not an Optimizer"
        )
    kind = type(optimizer).__name__
    for index, group in enumerate(optimizer.param_groups):
        if "lr" not in group:
            raise ValueError(
                f"{name}: group {index} of {kind} has no 'lr' for the schedule to set. Give the "
                "group one, or use the optimizer without a schedule."
            )
        if group["lr"] is None:
            raise TypeError(
                f"{name}: group {index} of {kind} has lr=None: the optimizer chooses its own step "
                "size (relative_step), and a schedule has nothing to multiply. Give it an lr and "
                "relative_step=False, or use AdafactorSchedule."
            )


def check_groups(
    optimizer: Optimizer, expected: int, name: str, way_out: str = "Make a new one."
) -> None:
    """Raises if the optimizer has gained or lost groups since the schedule called `name` was
    made."""
    groups = len(optimizer.param_groups)
    if groups != expected:
        raise ValueError(
            f"{name} was made for {expected} group(s), but the optimizer has {groups} now. "
            f"{way_out}"
        )


def default_lr(optimizer: Optimizer, name: str, argument: str) -> float:
    """The learning rate in the optimizer's defaults. The schedule called `name` divides its
    `argument`, an absolute learning rate, by it."""
    check_learning_rates(optimizer, name)
    lr = optimizer.defaults.get("lr")
    if lr is None:
        raise ValueError(
            f"{name}: {argument} is compared with the default lr of {type(optimizer).__name__}, "
            "which has none. Give the optimizer an lr besides those of its groups."
        )
    for group in optimizer.param_groups:
        # If a group shares the tensor, an earlier schedule of torch has filled it.
        if group["lr"] is lr and isinstance(lr, Tensor):
            lr = group.get("initial_lr", lr)
    if not scalar(lr) > 0.0:
        raise ValueError(
            f"{name}: {argument} is compared with the default lr of {type(optimizer).__name__}, "
            f"which should be above 0 but is: {scalar(lr)}"
        )
    return scalar(lr)


def separate_tensors(optimizer: Optimizer, *, groups: bool) -> None:
    """Clones the optimizer's default lr if a group has the same tensor, which the schedule will
    fill. With `groups`, also gives each group a tensor of its own, since their rates will
    differ."""
    default = optimizer.defaults.get("lr")
    seen: set[int] = set()
    for group in optimizer.param_groups:
        lr = group["lr"]
        if isinstance(lr, Tensor):
            if lr is default:
                optimizer.defaults["lr"] = default.clone()
            if groups and id(lr) in seen:
                group["lr"] = lr.clone()
            seen.add(id(lr))


def set_lr(group: dict[str, Any], lr: float) -> None:
    """Sets the learning rate of a group, in place if it is a tensor."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr
