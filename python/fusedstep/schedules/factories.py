"""The functions of transformers.optimization that make a schedule; the cosines are in `cosine.py`.

Each checks its arguments and makes a `Schedule` of one formula in `formulas.py`, which defines the
letters.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from . import checks, formulas
from .schedule import Schedule, check_learning_rates, default_lr, scheduled
from .shared_arguments import with_shared_arguments


@with_shared_arguments
def get_constant_schedule(optimizer: Optimizer, last_epoch: int = -1) -> LambdaLR:
    """lr = the initial lr.

    Example:
        >>> opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        >>> get_constant_schedule(opt).get_last_lr()
        [0.5]
    """
    return Schedule(optimizer, formulas.constant, last_epoch, name="get_constant_schedule")


@with_shared_arguments
def get_constant_schedule_with_warmup(
    optimizer: Optimizer, num_warmup_steps: int, last_epoch: int = -1
) -> LambdaLR:
    """lr / initial lr = s / max(1, w) while s < w, then 1.

    Example:
        >>> opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        >>> get_constant_schedule_with_warmup(opt, num_warmup_steps=10).get_last_lr()
        [0.0]
    """
    return scheduled(
        optimizer,
        last_epoch,
        "get_constant_schedule_with_warmup",
        formulas.constant_with_warmup,
        {"num_warmup_steps": num_warmup_steps},
    )


@with_shared_arguments
def get_linear_schedule_with_warmup(
    optimizer: Optimizer, num_warmup_steps: int, num_training_steps: int, last_epoch: int = -1
) -> LambdaLR:
    """lr / initial lr = s / max(1, w) while s < w, then max(0, (T - s) / max(1, T - w)).

    Example:
        >>> opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        >>> get_linear_schedule_with_warmup(opt, 0, num_training_steps=100).get_last_lr()
        [0.5]
    """
    return scheduled(
        optimizer,
        last_epoch,
        "get_linear_schedule_with_warmup",
        formulas.linear,
        {"num_warmup_steps": num_warmup_steps, "num_training_steps": num_training_steps},
    )


@with_shared_arguments
def get_polynomial_decay_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    lr_end: float = 1e-7,
    power: float = 1.0,
    last_epoch: int = -1,
) -> LambdaLR:
    """lr / initial lr = s / max(1, w) while s < w, then ((L - e) (1 - q)^power + e) / L, and e / L
    after step T; L is the optimizer's default lr, e = lr_end.

    Example:
        >>> opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        >>> schedule = get_polynomial_decay_schedule_with_warmup(opt, 0, 100, lr_end=0.1, power=2.0)
    """
    name = "get_polynomial_decay_schedule_with_warmup"
    lr_init = default_lr(optimizer, name, "lr_end")
    lr_end = checks.finite(lr_end, "lr_end", name)
    if not lr_end < lr_init:
        raise ValueError(
            f"{name}: lr_end should be below the default lr of the optimizer, {lr_init}, but is: "
            f"{lr_end}"
        )
    return scheduled(
        optimizer,
        last_epoch,
        name,
        formulas.polynomial,
        {
            "num_warmup_steps": num_warmup_steps,
            "num_training_steps": num_training_steps,
            "power": power,
        },
        {"lr_end": lr_end, "lr_init": lr_init},
    )


@with_shared_arguments
def get_inverse_sqrt_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int,
    timescale: int | None = None,
    last_epoch: int = -1,
) -> LambdaLR:
    """lr / initial lr = s / max(1, w) while s < w, then sqrt(k / (s + k - w)), k = timescale. The
    default timescale is w, or 10000 if w = 0.

    Example:
        >>> opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        >>> get_inverse_sqrt_schedule(opt, num_warmup_steps=0).get_last_lr()
        [0.5]
    """
    name = "get_inverse_sqrt_schedule"
    num_warmup_steps = checks.not_negative(num_warmup_steps, "num_warmup_steps", name)
    if timescale is None:
        timescale = num_warmup_steps or 10_000
    timescale = checks.not_negative(timescale, "timescale", name)
    if not timescale > 0:
        raise ValueError(f"{name}: timescale should be above 0 but is: {timescale}")
    settings = {"num_warmup_steps": num_warmup_steps, "timescale": timescale}
    return scheduled(optimizer, last_epoch, name, formulas.inverse_sqrt, settings)


@with_shared_arguments
def get_wsd_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_decay_steps: int,
    num_training_steps: int | None = None,
    num_stable_steps: int | None = None,
    warmup_type: str = "linear",
    decay_type: str = "cosine",
    min_lr_ratio: float = 0,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
) -> LambdaLR:
    """Warm-up, stable, decay: lr / initial lr rises from r = min_lr_ratio to 1 in w steps, stays at
    1 for num_stable_steps (by default T - w - num_decay_steps), falls to r in num_decay_steps and
    stays at r. The rise and the fall are "linear", "cosine" or "1-sqrt":
    `fusedstep.schedules.formulas.warmup_stable_decay` has their formulas.

    Arguments:
        num_training_steps: T; or give num_stable_steps.
        num_cycles: c, for a decay of "cosine".

    Example:
        >>> opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        >>> schedule = get_wsd_schedule(opt, 10, 20, num_training_steps=100, decay_type="1-sqrt")
    """
    name = "get_wsd_schedule"
    if num_training_steps is None and num_stable_steps is None:
        raise ValueError(
            f"{name} needs num_training_steps or num_stable_steps, to know when the decay begins"
        )
    if num_training_steps is not None and num_stable_steps is not None:
        warnings.warn(
            f"{name}: num_training_steps is ignored, because num_stable_steps is given",
            stacklevel=2,
        )
    checks.choice(warmup_type, "warmup_type", name, formulas.RISES)
    checks.choice(decay_type, "decay_type", name, formulas.FALLS)
    num_warmup_steps = checks.not_negative(num_warmup_steps, "num_warmup_steps", name)
    num_decay_steps = checks.not_negative(num_decay_steps, "num_decay_steps", name)
    if num_stable_steps is None:
        # This is negative if warm-up and decay are longer than the run. The decay is then under way
        # when the warm-up ends.
        total = checks.not_negative(num_training_steps, "num_training_steps", name)
        stable = total - num_warmup_steps - num_decay_steps
    else:
        stable = checks.not_negative(num_stable_steps, "num_stable_steps", name)
    return scheduled(
        optimizer,
        last_epoch,
        name,
        formulas.warmup_stable_decay,
        {"num_cycles": num_cycles},
        {
            "num_warmup_steps": num_warmup_steps,
            "num_stable_steps": stable,
            "num_decay_steps": num_decay_steps,
            "warmup_type": warmup_type,
            "decay_type": decay_type,
            "min_lr_ratio": checks.finite(min_lr_ratio, "min_lr_ratio", name),
        },
    )


@with_shared_arguments
def get_reduce_on_plateau_schedule(optimizer: Optimizer, **kwargs: Any) -> ReduceLROnPlateau:
    """``torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **kwargs)``: lr <- factor lr if the
    metric has not improved for more than `patience` steps. Its `step` takes the metric.

    Arguments:
        kwargs: the arguments of torch's class.

    Example:
        >>> opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        >>> get_reduce_on_plateau_schedule(opt, patience=3).step(1.0)
    """
    check_learning_rates(optimizer, "get_reduce_on_plateau_schedule")
    return ReduceLROnPlateau(optimizer, **kwargs)
