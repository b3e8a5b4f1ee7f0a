"""AdamW: torch's, torch's with amsgrad, and the one transformers had before version 5.

Decoupled decay is `p - decay * p`: the factor 1 - decay, rounded to float32, would drift by its own
rounding, step after step (4e-6 after 300 steps with decay 1e-5). Of an infinite p the difference is
nan, without decay too: p then stays what it was, as it would by the factor.
"""

from __future__ import annotations

from .numbers import div, maximum, sqrt, where
from .spec import Rule

SCALARS = (
    "beta1",
    "one_minus_beta1",
    "beta2",
    "one_minus_beta2",
    "eps",
    "decay",
    "step_size",
    "inv_root_bias2",
)


def adamw(
    p,
    g,
    m,
    v,
    beta1,
    one_minus_beta1,
    beta2,
    one_minus_beta2,
    eps,
    decay,
    step_size,
    inv_root_bias2,
):
    m = beta1 * m + one_minus_beta1 * g
    v = beta2 * v + one_minus_beta2 * (g * g)
    kept = p - decay * p
    p = where(kept == kept, kept, p) - step_size * div(m, sqrt(v) * inv_root_bias2 + eps)
    return p, m, v


def adamw_amsgrad(
    p,
    g,
    m,
    v,
    w,
    beta1,
    one_minus_beta1,
    beta2,
    one_minus_beta2,
    eps,
    decay,
    step_size,
    inv_root_bias2,
):
    m = beta1 * m + one_minus_beta1 * g
    v = beta2 * v + one_minus_beta2 * (g * g)
    w = maximum(w, v)
    kept = p - decay * p
    p = where(kept == kept, kept, p) - step_size * div(m, sqrt(w) * inv_root_bias2 + eps)
    return p, m, v, w


def adamw_decay_last(
    p,
    g,
    m,
    v,
    beta1,
    one_minus_beta1,
    beta2,
    one_minus_beta2,
    eps,
    decay,
    step_size,
    inv_root_bias2,
):
    """transformers' old one: decay after the update. It passes inv_root_bias2 = 1, so that eps is
    outside the bias correction, which is part of step_size."""
    m = beta1 * m + one_minus_beta1 * g
    v = beta2 * v + one_minus_beta2 * (g * g)
    p = p - step_size * div(m, sqrt(v) * inv_root_bias2 + eps)
    kept = p - decay * p
    p = where(kept == kept, kept, p)
    return p, m, v


def torch_scalars(
    step: float, *, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float
) -> tuple[float, ...]:
    """Scalars of `adamw` and `adamw_amsgrad` at `step` = 1, 2, ..."""
    return (
        beta1,
        1.0 - beta1,
        beta2,
        1.0 - beta2,
        eps,
        lr * weight_decay,
        lr / (1.0 - beta1**step),
        1.0 / sqrt(1.0 - beta2**step),
    )


def transformers_scalars(
    step: float,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    correct_bias: bool,
) -> tuple[float, ...]:
    """Scalars of `adamw_decay_last` at `step` = 1, 2, ..."""
    bias = sqrt(1.0 - beta2**step) / (1.0 - beta1**step) if correct_bias else 1.0
    decay = lr * weight_decay if weight_decay > 0.0 else 0.0
    return (beta1, 1.0 - beta1, beta2, 1.0 - beta2, eps, decay, lr * bias, 1.0)


RULES = (
    Rule("adamw", ("m", "v"), SCALARS, (adamw,)),
    Rule("adamw_amsgrad", ("m", "v", "w"), SCALARS, (adamw_amsgrad,)),
    Rule("adamw_decay_last", ("m", "v"), SCALARS, (adamw_decay_last,)),
)
