"""GreedyLR: raises the learning rate while a metric improves, and lowers it while it does not."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ..optim.hyperparams import scalar
from ..plan import devices
from . import checks
from .schedule import check_groups, check_learning_rates, separate_tensors, set_lr
from .shared_arguments import with_shared_arguments
from .streaming_average import StreamingAverage

# The attributes that a checkpoint holds.
SAVED = (
    "factor", "min_lrs", "max_lrs", "patience", "verbose", "cooldown", "warmup",
    "cooldown_counter", "warmup_counter", "mode", "threshold", "threshold_mode", "best",
    "num_bad_epochs", "num_good_epochs", "eps", "last_epoch", "smooth", "window_size",
    "reset_start", "reset_start_original", "_last_lr", "_init_lrs",
)  # fmt: skip
OF_GROUPS = ("min_lrs", "max_lrs", "_last_lr", "_init_lrs")


@with_shared_arguments
class GreedyLR(ReduceLROnPlateau):
    """A schedule that follows a metric, as ``transformers.optimization.GreedyLR``.

        better for more than `patience` steps in a row:       lr = min(lr / factor, max_lr)
        not better for more than `patience` steps in a row:   lr = max(lr factor, min_lr)

    A metric is better if it is below best - threshold ("abs") or best (1 - threshold) ("rel"); with
    mode="max", if it is above best + threshold or best (1 + threshold). A change of at most `eps`
    is not made. The `cooldown` steps after a decrease and the `warmup` steps after an increase are
    not judged. After `reset_start` decreases that leave all groups at their min_lr, everything
    restarts from the initial lr. `smooth` uses the mean of the last `window_size` metrics.

    It is a subclass of ReduceLROnPlateau, so frameworks that pass the metric to that one pass it to
    this one too.

    Arguments:
        mode: "min" if a lower metric is better, or "max".
        factor: what lr is multiplied by to decrease it, and divided by to increase it.
        patience: how many steps in a row are waited for.
        threshold: by how much a metric must beat the best one.
        threshold_mode: "rel" if the threshold is a share of the best metric, or "abs".
        cooldown: how many steps after a decrease are not judged.
        warmup: how many steps after an increase are not judged.
        min_lr: the lowest learning rate, one number or one for each group.
        max_lr: the highest learning rate, one number or one for each group.
        eps: a change of at most this much is not made.
        verbose: prints every change.
        smooth: judges the mean of the last metrics instead of the last one.
        window_size: of how many metrics the mean is.
        reset_start: how many decreases at min_lr lead to a restart.

    Example:
        >>> opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        >>> schedule = GreedyLR(opt, patience=0, factor=0.5)
        >>> schedule.step(3.0), schedule.step(4.0), schedule.get_last_lr()
        (None, None, [0.5])
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.95,
        patience: int = 10,
        threshold: float = 1e-6,
        threshold_mode: str = "abs",
        cooldown: int = 0,
        warmup: int = 0,
        min_lr: float | list[float] = 1e-3,
        max_lr: float | list[float] = 1.0,
        eps: float = 1e-8,
        verbose: bool = False,
        smooth: bool = False,
        window_size: int = 50,
        reset_start: int = 500,
    ) -> None:
        name = "GreedyLR"
        check_learning_rates(optimizer, name)
        self.factor = checks.finite(factor, "factor", name)
        if not 0.0 < self.factor < 1.0:
            raise ValueError(
                f"{name}: factor should be between 0 and 1 but is: {self.factor}. The lr is "
                "multiplied by it to decrease it, and divided by it to increase it."
            )
        checks.choice(mode, "mode", name, ("min", "max"))
        checks.choice(threshold_mode, "threshold_mode", name, ("rel", "abs"))
        self.optimizer = optimizer
        self.mode, self.threshold_mode = mode, threshold_mode
        self.verbose, self.smooth = verbose, smooth
        self.threshold = checks.finite(threshold, "threshold", name)
        self.eps = checks.not_negative(eps, "eps", name)
        self.patience = checks.not_negative(patience, "patience", name)
        self.cooldown = checks.not_negative(cooldown, "cooldown", name)
        self.warmup = checks.not_negative(warmup, "warmup", name)
        self.window_size = checks.not_negative(window_size, "window_size", name)
        if self.window_size < 1:
            raise ValueError(f"{name}: window_size should be 1 or more but is: {window_size}")
        self.reset_start = self.reset_start_original = checks.not_negative(
            reset_start, "reset_start", name
        )
        self.min_lrs = _of_groups(min_lr, "min_lr", optimizer)
        self.max_lrs = _of_groups(max_lr, "max_lr", optimizer)
        for index, (low, high) in enumerate(zip(self.min_lrs, self.max_lrs, strict=True)):
            if low > high:
                raise ValueError(
                    f"{name}: min_lr should be at most max_lr but is: {low}, above {high}, in "
                    f"group {index}"
                )
        separate_tensors(optimizer, groups=len({*zip(self.min_lrs, self.max_lrs, strict=True)}) > 1)
        self.last_epoch = 0
        self._init_lrs = [scalar(group["lr"]) for group in optimizer.param_groups]
        self._last_lr: list[Any] = [*self._init_lrs]
        self._begin()

    def _begin(self) -> None:
        self.best = math.inf if self.mode == "min" else -math.inf
        self.num_bad_epochs = self.num_good_epochs = 0
        self.cooldown_counter = self.warmup_counter = 0
        self._streaming_avg = StreamingAverage(self.window_size) if self.smooth else None

    def step(  # type: ignore[override]  # as ReduceLROnPlateau's
        self, metrics: Any, epoch: int | None = None
    ) -> None:
        """Takes the metric of one step and sets the learning rates.

        Arguments:
            metrics: the metric, a number.
            epoch: the number of this step, which `verbose` prints; by default one more than the
                last.
        """
        current = float(metrics)
        if self._streaming_avg is not None:
            current = self._streaming_avg.streamavg(current)
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        if self.cooldown_counter > 0 or self.warmup_counter > 0:
            if self.cooldown_counter > 0:
                self.cooldown_counter -= 1
            else:
                self.warmup_counter -= 1
            self.num_bad_epochs = self.num_good_epochs = 0
        else:
            self._judge(current)
        self._last_lr = self._rates()

    def _judge(self, current: float) -> None:
        if self.is_better(current, self.best):
            self.best = current
            self.num_good_epochs, self.num_bad_epochs = self.num_good_epochs + 1, 0
        else:
            self.num_good_epochs, self.num_bad_epochs = 0, self.num_bad_epochs + 1
        if self.num_good_epochs > self.patience:
            self._increase_lr(self.last_epoch)
            self.warmup_counter, self.num_good_epochs = self.warmup, 0
        elif self.num_bad_epochs > self.patience:
            self._reduce_lr(self.last_epoch)
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0

    def is_better(self, current: float, best: float) -> bool:
        """Whether a metric beats the best one by the threshold."""
        down = -1.0 if self.mode == "min" else 1.0
        # best + down * threshold * best would be nan at first, where best is infinite.
        relative = self.threshold_mode == "rel"
        bound = best * (1.0 + down * self.threshold) if relative else best + down * self.threshold
        return current < bound if self.mode == "min" else current > bound

    def _increase_lr(self, epoch: int) -> None:
        for index, lr in enumerate(self._rates()):
            larger = min(lr / self.factor, self.max_lrs[index])
            if larger - lr > self.eps:
                self._set(index, larger, f"Epoch {epoch}: learning rate of group {index} up to")
        self.reset_start = self.reset_start_original

    def _reduce_lr(self, epoch: int) -> None:
        for index, lr in enumerate(self._rates()):
            smaller = max(lr * self.factor, self.min_lrs[index])
            if lr - smaller > self.eps:
                self._set(index, smaller, f"Epoch {epoch}: learning rate of group {index} down to")
        if all(lr <= low for lr, low in zip(self._rates(), self.min_lrs, strict=True)):
            self.reset_start -= 1
            if self.reset_start <= 0:
                self._reset()

    def _reset(self) -> None:
        for index, lr in enumerate(self._init_lrs):
            self._set(index, lr, f"Restart: learning rate of group {index} is")
        self._begin()
        self.reset_start = self.reset_start_original

    def _set(self, index: int, lr: float, said: str) -> None:
        set_lr(self.optimizer.param_groups[index], lr)
        self._last_lr[index] = lr
        if self.verbose:
            print(f"{said} {lr:.4e}.")

    def _rates(self) -> list[float]:
        """The learning rate of each group. For a tensor it is the number that we filled it with,
        before rounding, unless the tensor holds another number by now. A tensor on a device is not
        read: we assume that it still holds ours."""
        check_groups(self.optimizer, len(self._last_lr), "GreedyLR")
        rates = []
        for group, own in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            lr = group["lr"]
            is_own = isinstance(lr, Tensor) and (
                not devices.on_host(lr) or lr.item() == lr.new_tensor(own).item()
            )
            rates.append(own if is_own else scalar(lr))
        return rates

    def get_last_lr(self) -> list[Any]:
        """The learning rates that the last step set."""
        return self._last_lr

    def state_dict(self) -> dict[str, Any]:
        """The settings and counters; the optimizer is not in it."""
        state = {key: getattr(self, key) for key in SAVED}
        state |= {key: [*state[key]] for key in OF_GROUPS}
        if self._streaming_avg is not None:
            state["_streaming_avg"] = self._streaming_avg.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` returned, or a part of it, and sets the learning rates."""
        groups = self.optimizer.param_groups
        for key in OF_GROUPS:
            if len(state_dict.get(key, groups)) != len(groups):
                raise ValueError(
                    f"GreedyLR: the state has {key} for {len(state_dict[key])} groups, but the "
                    f"optimizer has {len(groups)}. Load a checkpoint made with the same groups."
                )
        for key in SAVED:
            if key in state_dict:
                value = state_dict[key]
                setattr(self, key, [*map(scalar, value)] if key in OF_GROUPS else value)
        if not self.smooth:
            self._streaming_avg = None
        elif "_streaming_avg" in state_dict or self._streaming_avg is None:
            self._streaming_avg = StreamingAverage(self.window_size)
            self._streaming_avg.load_state_dict(state_dict.get("_streaming_avg", {}))
        if "_last_lr" in state_dict:
            for group, lr in zip(groups, self._last_lr, strict=True):
                set_lr(group, lr)


def _of_groups(lr: Any, argument: str, optimizer: Optimizer) -> list[float]:
    """One bound for each group, from a single number or a list."""
    groups = len(optimizer.param_groups)
    if not isinstance(lr, (list, tuple)):
        return [checks.finite(lr, argument, "GreedyLR")] * groups
    if len(lr) != groups:
        raise ValueError(
            f"GreedyLR: {argument} should have {groups} numbers, one for each group, but has "
            f"{len(lr)}"
        )
    return [checks.finite(one, argument, "GreedyLR") for one in lr]


@with_shared_arguments
def get_greedy_schedule(optimizer: Optimizer, **kwargs: Any) -> GreedyLR:
    """``GreedyLR(optimizer, **kwargs)``.

    Arguments:
        kwargs: the arguments of ``GreedyLR``.

    Example:
        >>> opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        >>> get_greedy_schedule(opt, patience=3).step(1.0)
    """
    return GreedyLR(optimizer, **kwargs)
