"""Every schedule as a pure function of the step: the factor that a learning rate is multiplied by.

    s step 0, 1, 2, ...        w num_warmup_steps        T num_training_steps
    q = (s - w) / max(1, T - w)        the progress after the warm-up
    wave(c, x) = (1 + cos(2 pi c x)) / 2        c cycles, from 1; half a cycle ends at 0

Unless a docstring says otherwise, the first w steps are the ramp s / max(1, w), and the docstring
has the formula for s >= w. There are no tensors and no optimizers here.
"""

from __future__ import annotations

import math

from .shared_arguments import with_shared_arguments


@with_shared_arguments
def ramp(step: float, num_warmup_steps: float, power: float = 1.0) -> float:
    """(s / max(1, w))^power, for s < w.

    Arguments:
        power: the exponent of the ramp.

    Example:
        >>> ramp(1, 4), ramp(1, 4, power=2.0)
        (0.25, 0.0625)
    """
    return (step / max(1, num_warmup_steps)) ** power


@with_shared_arguments
def wave(num_cycles: float, x: float) -> float:
    """(1 + cos(2 pi c x)) / 2.

    Arguments:
        x: the progress, from 0 to 1.

    Example:
        >>> wave(0.5, 0.0), wave(0.5, 1.0)
        (1.0, 0.0)
    """
    return 0.5 * (1.0 + math.cos(math.pi * num_cycles * 2.0 * x))


@with_shared_arguments
def constant(step: float) -> float:
    """1 at every step; no warm-up.

    Example:
        >>> constant(7)
        1.0
    """
    return 1.0


@with_shared_arguments
def constant_with_warmup(step: float, *, num_warmup_steps: float) -> float:
    """1 after the warm-up.

    Example:
        >>> [constant_with_warmup(s, num_warmup_steps=2) for s in range(4)]
        [0.0, 0.5, 1.0, 1.0]
    """
    return ramp(step, num_warmup_steps) if step < num_warmup_steps else 1.0


@with_shared_arguments
def linear(step: float, *, num_warmup_steps: float, num_training_steps: float) -> float:
    """max(0, (T - s) / max(1, T - w)).

    Example:
        >>> [linear(s, num_warmup_steps=2, num_training_steps=4) for s in range(6)]
        [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    """
    if step < num_warmup_steps:
        return ramp(step, num_warmup_steps)
    return max(0.0, (num_training_steps - step) / max(1, num_training_steps - num_warmup_steps))


@with_shared_arguments
def cosine(
    step: float,
    *,
    num_warmup_steps: float,
    num_training_steps: float,
    num_cycles: float,
    min_lr_rate: float = 0.0,
) -> float:
    """max(0, r + (1 - r) wave(c, q)), r = min_lr_rate. The wave continues after step T, so with
    half a cycle the value rises again.

    Example:
        >>> settings = dict(num_warmup_steps=0, num_training_steps=2, num_cycles=0.5)
        >>> [round(cosine(s, **settings), 9) for s in range(5)]
        [1.0, 0.5, 0.0, 0.5, 1.0]
    """
    if step < num_warmup_steps:
        return ramp(step, num_warmup_steps)
    progress = (step - num_warmup_steps) / max(1, num_training_steps - num_warmup_steps)
    return max(0.0, wave(num_cycles, progress) * (1.0 - min_lr_rate) + min_lr_rate)


@with_shared_arguments
def cosine_with_hard_restarts(
    step: float, *, num_warmup_steps: float, num_training_steps: float, num_cycles: float
) -> float:
    """wave(1/2, c q mod 1), and 0 from q = 1 on.

    Example:
        >>> settings = dict(num_warmup_steps=0, num_training_steps=4, num_cycles=2)
        >>> [round(cosine_with_hard_restarts(s, **settings), 9) for s in range(6)]
        [1.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    """
    if step < num_warmup_steps:
        return ramp(step, num_warmup_steps)
    progress = (step - num_warmup_steps) / max(1, num_training_steps - num_warmup_steps)
    return 0.0 if progress >= 1.0 else wave(0.5, (num_cycles * progress) % 1.0)


@with_shared_arguments
def cosine_with_warmup_rate(
    step: float,
    *,
    num_warmup_steps: float,
    num_training_steps: float,
    num_cycles: float,
    min_lr_rate: float = 0.0,
    warmup_lr_rate: float | None = None,
) -> float:
    """max(0, r + (1 - r) wave(c, q')), q' = (s - w + 1) / max(1, T - w): the minimum comes at step
    T - 1. The ramp is (s + 1) / max(1, w); with a warmup_lr_rate a it is
    a + (1 - a) s / max(1, w - 1), which is 1 at step w - 1.

    Example:
        >>> settings = dict(num_warmup_steps=2, num_training_steps=4, num_cycles=0.5)
        >>> [round(cosine_with_warmup_rate(s, **settings), 9) for s in range(4)]
        [0.5, 1.0, 0.5, 0.0]
    """
    if step < num_warmup_steps:
        if warmup_lr_rate is None:
            return ramp(step + 1.0, num_warmup_steps)
        return warmup_lr_rate + (1.0 - warmup_lr_rate) * step / max(1, num_warmup_steps - 1)
    progress = (step - num_warmup_steps + 1.0) / max(1, num_training_steps - num_warmup_steps)
    return max(0.0, wave(num_cycles, progress) * (1.0 - min_lr_rate) + min_lr_rate)


@with_shared_arguments
def polynomial(
    step: float,
    *,
    num_warmup_steps: float,
    num_training_steps: float,
    lr_end: float,
    power: float,
    lr_init: float,
) -> float:
    """((L - e) (1 - (s - w) / (T - w))^power + e) / L up to step T, e / L after it; L = lr_init,
    e = lr_end.

    Example:
        >>> settings = dict(num_warmup_steps=0, num_training_steps=2, lr_init=1.0)
        >>> [polynomial(s, lr_end=0.25, power=1.0, **settings) for s in range(4)]
        [1.0, 0.625, 0.25, 0.25]
    """
    if step < num_warmup_steps:
        return ramp(step, num_warmup_steps)
    decay_steps = num_training_steps - num_warmup_steps
    if step > num_training_steps or decay_steps == 0:
        return lr_end / lr_init
    remaining = 1.0 - (step - num_warmup_steps) / decay_steps
    return ((lr_init - lr_end) * remaining**power + lr_end) / lr_init


@with_shared_arguments
def inverse_sqrt(step: float, *, num_warmup_steps: float, timescale: float) -> float:
    """sqrt(k / (s + k - w)), k = timescale.

    Example:
        >>> [inverse_sqrt(s, num_warmup_steps=0, timescale=1) for s in (0, 3, 8)]
        [1.0, 0.5, 0.333...]
    """
    if step < num_warmup_steps:
        return ramp(step, num_warmup_steps)
    return 1.0 / math.sqrt((step + (timescale - num_warmup_steps)) / timescale)


# The shapes of warm-ups and decays, by name: x goes from 0 to 1.
RISES = {
    "linear": lambda x: x,
    "cosine": lambda x: 0.5 * (1.0 - math.cos(math.pi * x)),
    "1-sqrt": lambda x: 1.0 - math.sqrt(1.0 - x),
}
FALLS = {
    "linear": lambda x, num_cycles: 1.0 - x,
    "cosine": lambda x, num_cycles: wave(num_cycles, x),
    "1-sqrt": lambda x, num_cycles: 1.0 - math.sqrt(x),
}


@with_shared_arguments
def warmup_stable_decay(
    step: float,
    *,
    num_warmup_steps: float,
    num_stable_steps: float,
    num_decay_steps: float,
    warmup_type: str,
    decay_type: str,
    min_lr_ratio: float,
    num_cycles: float,
) -> float:
    """max(0, r + (1 - r) rise(s / max(1, w))) for w steps, 1 for num_stable_steps, then
    max(0, r + (1 - r) fall(x)) for num_decay_steps, with x from 0 to 1, then r; r = min_lr_ratio.
    rise(x) is x, (1 - cos(pi x)) / 2 or 1 - sqrt(1 - x); fall(x) is 1 - x, wave(c, x) or
    1 - sqrt(x).

    Example:
        >>> settings = dict(num_warmup_steps=2, num_stable_steps=1, num_decay_steps=2)
        >>> settings |= dict(warmup_type="linear", decay_type="linear", num_cycles=0.5)
        >>> [warmup_stable_decay(s, min_lr_ratio=0.0, **settings) for s in range(6)]
        [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    """
    decay_begins = num_warmup_steps + num_stable_steps
    if step < num_warmup_steps:
        share = RISES[warmup_type](step / max(1, num_warmup_steps))
    elif step < decay_begins:
        return 1.0
    elif step < decay_begins + num_decay_steps:
        share = FALLS[decay_type]((step - decay_begins) / max(1, num_decay_steps), num_cycles)
    else:
        return min_lr_ratio
    return max(0.0, share * (1.0 - min_lr_ratio) + min_lr_ratio)
