"""AdamW: torch's, torch's with amsgrad, and the one from transformers before version 5."""

from __future__ import annotations

from typing import Any

from .decay import decayed, signed_decay
from .numbers import div, maximum, sqrt
from .spec import LARGE_MODELS, Rule

SCALARS = (
    "beta1",
    "one_minus_beta1",
    "beta2",
    "one_minus_beta2",
    "eps",
    "decay",  # signed, see rules/decay.py
    "step_size",
    "inv_root_bias2",
)


def average(old, x, beta, one_minus_beta):
    return beta * old + one_minus_beta * x


def descend(p, m, v, eps, step_size, inv_root_bias2):
    return p - step_size * div(m, sqrt(v) * inv_root_bias2 + eps)


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
    m = average(m, g, beta1, one_minus_beta1)
    v = average(v, g * g, beta2, one_minus_beta2)
    p = descend(decayed(p, decay), m, v, eps, step_size, inv_root_bias2)
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
    m = average(m, g, beta1, one_minus_beta1)
    v = average(v, g * g, beta2, one_minus_beta2)
    w = maximum(w, v)
    p = descend(decayed(p, decay), m, w, eps, step_size, inv_root_bias2)
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
    """transformers' old AdamW: decay after the update. inv_root_bias2 is 1, so eps is not bias
    corrected; step_size contains the correction."""
    m = average(m, g, beta1, one_minus_beta1)
    v = average(v, g * g, beta2, one_minus_beta2)
    p = decayed(descend(p, m, v, eps, step_size, inv_root_bias2), decay)
    return p, m, v


def torch_scalars(
    step: float, *, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float
) -> dict[str, Any]:
    """Scalars of `adamw` and `adamw_amsgrad` at `step` = 1, 2, ..."""
    return {
        "beta1": beta1,
        "one_minus_beta1": 1.0 - beta1,
        "beta2": beta2,
        "one_minus_beta2": 1.0 - beta2,
        "eps": eps,
        "decay": signed_decay(lr * weight_decay),
        "step_size": lr / (1.0 - beta1**step),
        "inv_root_bias2": 1.0 / sqrt(1.0 - beta2**step),
    }


def transformers_scalars(
    step: float,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    correct_bias: bool,
) -> dict[str, Any]:
    """Scalars of `adamw_decay_last` at `step` = 1, 2, ..."""
    bias = sqrt(1.0 - beta2**step) / (1.0 - beta1**step) if correct_bias else 1.0
    return {
        "beta1": beta1,
        "one_minus_beta1": 1.0 - beta1,
        "beta2": beta2,
        "one_minus_beta2": 1.0 - beta2,
        "eps": eps,
        "decay": signed_decay(lr * weight_decay) if weight_decay > 0.0 else 0.0,
        "step_size": lr * bias,
        "inv_root_bias2": 1.0,
    }


# bfloat16 parameters and gradients with low-precision options.
STORED = (
    ("noisy_bfloat16", "bfloat16", "noisy_bfloat16"),
    ("noisy_bfloat16", "bfloat16", "float32"),
    ("rest16", "bfloat16", "bfloat16"),
    ("rest16", "bfloat16", "float32"),
    ("rest8", "bfloat16", "bfloat16"),
)

RULES = (
    Rule(
        "adamw",
        ("m", "v"),
        SCALARS,
        (adamw,),
        dtypes=LARGE_MODELS,
        stored=STORED,
        in_blocks=True,
    ),
    Rule("adamw_amsgrad", ("m", "v", "w"), SCALARS, (adamw_amsgrad,)),
    Rule("adamw_decay_last", ("m", "v"), SCALARS, (adamw_decay_last,)),
)
