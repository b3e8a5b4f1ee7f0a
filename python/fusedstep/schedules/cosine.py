"""The functions of transformers.optimization that make a cosine schedule. `formulas.py` defines the
letters."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from . import checks, formulas
from .schedule import default_lr, scheduled
from .shared_arguments import with_shared_arguments


@with_shared_arguments
def get_cosine_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
) -> LambdaLR:
    """lr / initial lr = s / max(1, w) while s < w, then (1 + cos(2 pi c q)) / 2, c = num_cycles.

    The cosine continues after step T. With half a cycle, training longer than num_training_steps
    makes the learning rate rise again, as in transformers.

    Example:
        >>> opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        >>> get_cosine_schedule_with_warmup(opt, 0, num_training_steps=100).get_last_lr()
        [0.5]
    """
    return scheduled(
        optimizer,
        last_epoch,
        "get_cosine_schedule_with_warmup",
        formulas.cosine,
        {
            "num_warmup_steps": num_warmup_steps,
            "num_training_steps": num_training_steps,
            "num_cycles": num_cycles,
        },
    )


@with_shared_arguments
def get_cosine_with_hard_restarts_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: int = 1,
    last_epoch: int = -1,
) -> LambdaLR:
    """lr / initial lr = s / max(1, w) while s < w, then (1 + cos(pi (c q mod 1))) / 2, and 0 from
    step T on; c = num_cycles.

    Example:
        >>> opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        >>> schedule = get_cosine_with_hard_restarts_schedule_with_warmup(opt, 0, 100, num_cycles=4)
    """
    return scheduled(
        optimizer,
        last_epoch,
        "get_cosine_with_hard_restarts_schedule_with_warmup",
        formulas.cosine_with_hard_restarts,
        {
            "num_warmup_steps": num_warmup_steps,
            "num_training_steps": num_training_steps,
            "num_cycles": num_cycles,
        },
    )


@with_shared_arguments
def get_cosine_with_min_lr_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
) -> LambdaLR:
    """lr / initial lr = s / max(1, w) while s < w, then r + (1 - r) (1 + cos(2 pi c q)) / 2; r is
    min_lr_rate, or min_lr divided by the optimizer's default lr: give one of them. The cosine
    continues after step T.

    Example:
        >>> opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        >>> schedule = get_cosine_with_min_lr_schedule_with_warmup(opt, 0, 100, min_lr=0.05)
    """
    name = "get_cosine_with_min_lr_schedule_with_warmup"
    return scheduled(
        optimizer,
        last_epoch,
        name,
        formulas.cosine,
        {
            "num_warmup_steps": num_warmup_steps,
            "num_training_steps": num_training_steps,
            "num_cycles": num_cycles,
        },
        {"min_lr_rate": _min_lr_rate(optimizer, min_lr, min_lr_rate, name)},
    )


@with_shared_arguments
def get_cosine_with_min_lr_schedule_with_warmup_lr_rate(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
    warmup_lr_rate: float | None = None,
) -> LambdaLR:
    """The schedule above, one step earlier: it reaches its minimum at step T - 1. The ramp starts
    at 1 / w, or at warmup_lr_rate, and reaches 1 at step w - 1.

    Example:
        >>> opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        >>> schedule = get_cosine_with_min_lr_schedule_with_warmup_lr_rate(
        ...     opt, 10, 100, min_lr_rate=0.1, warmup_lr_rate=0.2)
        >>> schedule.get_last_lr()
        [0.1]
    """
    name = "get_cosine_with_min_lr_schedule_with_warmup_lr_rate"
    if warmup_lr_rate is not None:
        warmup_lr_rate = checks.finite(warmup_lr_rate, "warmup_lr_rate", name)
    return scheduled(
        optimizer,
        last_epoch,
        name,
        formulas.cosine_with_warmup_rate,
        {
            "num_warmup_steps": num_warmup_steps,
            "num_training_steps": num_training_steps,
            "num_cycles": num_cycles,
        },
        {
            "min_lr_rate": _min_lr_rate(optimizer, min_lr, min_lr_rate, name),
            "warmup_lr_rate": warmup_lr_rate,
        },
    )


def _min_lr_rate(
    optimizer: Optimizer, min_lr: float | None, min_lr_rate: float | None, name: str
) -> float:
    if (min_lr is None) == (min_lr_rate is None):
        given = "neither" if min_lr is None else f"both min_lr={min_lr} and {min_lr_rate=}"
        raise ValueError(
            f"{name}: give min_lr, a learning rate, or min_lr_rate, a share of the initial one. "
            f"Given: {given}. get_scheduler takes them in scheduler_specific_kwargs, the Trainer "
            "in lr_scheduler_kwargs."
        )
    if min_lr is None:
        return float(checks.not_negative(min_lr_rate, "min_lr_rate", name))
    return float(
        checks.not_negative(min_lr, "min_lr", name) / default_lr(optimizer, name, "min_lr")
    )
