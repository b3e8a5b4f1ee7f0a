"""transformers' create_optimizer for TensorFlow: AdamWeightDecay, with warm-up and decay of lr."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from torch import nn

from ..optim.param_groups import param_groups
from ..plan.launcher import BackendName
from ..schedules import Schedule, checks, formulas
from .adam_weight_decay import AdamWeightDecay


def create_optimizer(
    model: nn.Module,
    init_lr: float,
    num_train_steps: int,
    num_warmup_steps: int,
    min_lr_ratio: float = 0.0,
    adam_beta1: float = 0.9,
    adam_beta2: float = 0.999,
    adam_epsilon: float = 1e-8,
    adam_clipnorm: float | None = None,
    adam_global_clipnorm: float | None = None,
    weight_decay_rate: float = 0.0,
    power: float = 1.0,
    include_in_weight_decay: str | Iterable[str] | None = None,
    *,
    exclude_from_weight_decay: str | Iterable[str] | None = None,
    backend: BackendName | None = None,
) -> tuple[AdamWeightDecay, Schedule]:
    """An ``AdamWeightDecay`` over ``param_groups(model, ...)``, and the schedule of its lr:

        lr = init_lr s / w                                               for steps s < w
        lr = (init_lr - end) (1 - (s - w) / (T - w))^power + end         then, up to step T
        lr = end = init_lr min_lr_ratio                                  after step T

    with w = num_warmup_steps and T = num_train_steps, as in ``transformers.create_optimizer``. Call
    ``step()`` of the optimizer, then of the schedule. With a warm-up, step 0 has lr = 0.

    Arguments:
        model: the module whose parameters are optimized. transformers' function does not take it.
        init_lr: the learning rate after the warm-up.
        num_train_steps: T, the length of the run, with the warm-up.
        num_warmup_steps: w, the length of the warm-up.
        min_lr_ratio: the learning rate at the end, as a share of init_lr.
        adam_beta1, adam_beta2: ``betas`` of ``AdamWeightDecay``.
        adam_epsilon: its ``eps``.
        adam_clipnorm: its ``clipnorm``.
        adam_global_clipnorm: its ``global_clipnorm``.
        weight_decay_rate: the decay of the parameters that decay.
        power: the exponent of the decay of the learning rate.
        include_in_weight_decay, exclude_from_weight_decay: as ``include`` and ``exclude`` of
            ``param_groups``.
        backend: as for ``AdamWeightDecay``.

    Example:
        >>> model = torch.nn.Linear(8, 8)
        >>> opt, schedule = create_optimizer(model, 1e-3, 100, 10, weight_decay_rate=0.01)
        >>> model(torch.ones(8)).sum().backward()
        >>> opt.step()
        >>> schedule.step()
        >>> schedule.get_last_lr()
        [0.0001, 0.0001]
    """
    name = "create_optimizer"
    init_lr = checks.finite(init_lr, "init_lr", name)
    if not init_lr > 0.0:
        raise ValueError(f"{name}: init_lr should be above 0 but is: {init_lr}")
    num_train_steps = checks.not_negative(num_train_steps, "num_train_steps", name)
    num_warmup_steps = checks.not_negative(num_warmup_steps, "num_warmup_steps", name)
    if num_train_steps < num_warmup_steps:
        raise ValueError(
            f"{name}: num_train_steps counts the warm-up too, so it should be at least "
            f"num_warmup_steps={num_warmup_steps} but is: {num_train_steps}"
        )
    min_lr_ratio = checks.not_negative(min_lr_ratio, "min_lr_ratio", name)
    if min_lr_ratio > 1.0:
        raise ValueError(f"{name}: min_lr_ratio should be from 0 to 1 but is: {min_lr_ratio}")
    power = checks.not_negative(power, "power", name)
    weight_decay_rate = checks.not_negative(weight_decay_rate, "weight_decay_rate", name)
    optimizer = AdamWeightDecay(
        param_groups(model, weight_decay_rate, include_in_weight_decay, exclude_from_weight_decay),
        lr=init_lr,
        betas=(adam_beta1, adam_beta2),
        eps=adam_epsilon,
        clipnorm=adam_clipnorm,
        global_clipnorm=adam_global_clipnorm,
        backend=backend,
    )
    factor = partial(
        formulas.polynomial,
        num_warmup_steps=num_warmup_steps,
        num_training_steps=num_train_steps,
        lr_end=init_lr * min_lr_ratio,
        power=power,
        lr_init=init_lr,
    )
    return optimizer, Schedule(optimizer, factor, name=name)
