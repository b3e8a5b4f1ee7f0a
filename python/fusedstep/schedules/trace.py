"""The values of a schedule without a model: for tables, pictures, and a look before a long run."""

from __future__ import annotations

from typing import Any

import torch

from ..optim import AdamW
from .by_name import METRIC_CLASSES, by_name


def example_loss(step: int, num_training_steps: int) -> float:
    """A loss for schedules that follow one: 1 / (1 + 9 s / T) up to step T / 2, flat after it.

    Example:
        >>> [round(example_loss(step, 10), 2) for step in (0, 5, 9)]
        [1.0, 0.18, 0.18]
    """
    return 1.0 / (1.0 + 9.0 * min(step / num_training_steps, 0.5))


def trace(
    name: str, num_training_steps: int, steps: int, lr: float = 1.0, **given: Any
) -> list[float]:
    """The learning rates at steps 0, 1, ... for an optimizer made with `lr`. A schedule that
    follows a metric gets `example_loss`.

    Arguments:
        steps: how many values; may be more than num_training_steps.
        given: the other arguments of `by_name`.

    Example:
        >>> trace("linear", 4, steps=6, num_warmup_steps=2)
        [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    """
    # The parameter has no gradient, so a step changes nothing. AdamW, because some schedules
    # (OneCycleLR, CyclicLR) also set a momentum.
    optimizer = AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    # A schedule that follows a metric has another `step` than LRScheduler's types say.
    schedule: Any = by_name(name, optimizer, num_training_steps=num_training_steps, **given)
    values = []
    for step in range(steps):
        values.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if step + 1 == steps:
            break
        if name in METRIC_CLASSES:
            schedule.step(example_loss(step, num_training_steps))
        else:
            schedule.step()
    return values
