"""Adafactor, as one family of rules. The dialects of transformers and torch differ in scalars only.

For a matrix (the last two dimensions, rows i, columns j; leading dimensions are a batch):

    row_i  = second_moment(row_i, mean_j g^2)          col_j = second_moment(col_j, mean_i g^2)
    u_ij   = precondition(g_ij, row_factor(row_i, mean(row)) * col_factor(col_j))
    p_ij   = update(p_ij, u_ij, step_size, decay)

The two factors are not multiplied first: row_i * col_j would underflow, and zero rows would meet
infinities. A vector keeps an unfactored v: u = precondition(g, col_factor(v)). `step_size` and
`decay` hold for the whole tensor (`finish`), because the update is clipped by its root mean square.
That needs sum(u^2) before any u is final, but no extra read: where nothing is capped,

    sum_ij u_ij^2 = mean(row) * sum_j h_j / col_j,   h_j = sum_i g_ij^2 / row_i

and row_i is known once row i has been read. Sums run in the order of `rules/layout.py`. `row`,
`col` and `v` are rounded to the state's dtype before they are used.
"""

from __future__ import annotations

import math
from typing import Any

from .decay import decayed, signed_decay
from .numbers import div, maximum, minimum, sqrt, where
from .spec import Rule

SCALARS = (
    "beta2",
    "one_minus_beta2",
    "eps_stat",  # added to the mean of g^2
    "mean_floor",  # least mean of row
    "cap",  # largest product of the two factors
    "rho",  # step size before it is scaled by rms(p)
    "scaled",  # 1 if rms(p) scales the step, else 0
    "scale_floor",  # least scale
    "clip",  # largest rms(u) that is not scaled down
    "divisor_if_nan",  # divides the step if rms(u) is nan
    "decay_fixed",  # weight decay of a step: decay_fixed + decay_scaled * scale
    "decay_scaled",
    "beta1",
    "one_minus_beta1",
)


def update(p, u, step_size, decay):
    p = decayed(p, decay) - step_size * u
    return (p,)


def update_momentum(p, m, u, step_size, decay, beta1, one_minus_beta1):
    m = beta1 * m + one_minus_beta1 * (step_size * u)
    p = decayed(p, decay) - m
    return p, m


def second_moment(old, mean_square, beta2, one_minus_beta2, eps_stat):
    return beta2 * old + one_minus_beta2 * (mean_square + eps_stat)


def floored_mean(mean, mean_floor):
    """At least mean_floor, but nan if the mean is infinite. The whole matrix is nan then, as it
    soon is in both peers."""
    return maximum(mean, mean_floor) + (mean - mean)


def row_factor(row, mean):
    return sqrt(div(mean, row))


def col_factor(col):
    return div(1.0, sqrt(col))


def is_capped(least_row, least_col, mean, cap):
    """Whether the cap changes any element of a matrix. The least moments give the largest
    factors."""
    return row_factor(least_row, mean) * col_factor(least_col) > cap


def precondition(g, factor, cap):
    # A nan factor stays nan, and cap is never nan. So this is one instruction; minimum takes four.
    return g * where(factor > cap, cap, factor)


def inverse(row):
    return div(1.0, row)


def col_sum_u2(h, col, mean):
    return div(mean * h, col)


def rms(sum_of_squares, count):
    return sqrt(div(sum_of_squares, count))


def finish(
    rms_p,
    rms_u,
    rho,
    scaled,
    scale_floor,
    clip,
    divisor_if_nan,
    decay_fixed,
    decay_scaled,
):
    """A tensor's step size and decay. If rms(p) is nan, scale_floor is used, as in both peers."""
    rms_p = where(rms_p > scale_floor, rms_p, scale_floor)
    scale = where(scaled > 0.0, rms_p, 1.0)
    excess = div(rms_u, clip)
    divisor = where(excess == excess, maximum(excess, 1.0), divisor_if_nan)
    step_size = div(rho * scale, divisor)
    decay = signed_decay(decay_fixed + decay_scaled * scale)
    return step_size, decay


def transformers_scalars(
    step: int,
    *,
    lr: float | None,
    eps: tuple[float, float],
    clip_threshold: float,
    decay_rate: float,
    beta1: float | None,
    weight_decay: float,
    scale_parameter: bool,
    relative_step: bool,
    warmup_init: bool,
) -> dict[str, Any]:
    """transformers' dialect at `step` = 1, 2, ...: eps[0] is added to the mean of g^2, and nothing
    is capped."""
    rho = relative_step_size(step, warmup_init) if relative_step else lr
    assert rho is not None, "the optimizer checks that lr is given unless relative_step"
    beta2 = 1.0 - step**decay_rate
    decay = weight_decay * rho
    return {
        "beta2": beta2,
        "one_minus_beta2": 1.0 - beta2,
        "eps_stat": eps[0],
        "mean_floor": 0.0,
        "cap": math.inf,
        "rho": rho,
        "scaled": float(scale_parameter),
        "scale_floor": eps[1],
        "clip": clip_threshold,
        "divisor_if_nan": math.nan,
        "decay_fixed": 0.0 if scale_parameter else decay,
        "decay_scaled": decay if scale_parameter else 0.0,
        "beta1": beta1 or 0.0,
        "one_minus_beta1": 1.0 - (beta1 or 0.0),
    }


def relative_step_size(step: int, warmup_init: bool) -> float:
    """min(1e-6 t or 1e-2, 1/sqrt(t)): the paper's time-dependent step."""
    return minimum(1e-6 * step if warmup_init else 1e-2, 1.0 / sqrt(step))


def torch_scalars(
    step: float,
    *,
    lr: float,
    beta2_decay: float,
    eps1: float,
    eps2: float,
    d: float,
    weight_decay: float,
) -> dict[str, Any]:
    """torch's dialect at `step` = 1, 2, ...: eps1 is a floor, weight decay ignores the scale."""
    one_minus_beta2 = step**beta2_decay
    return {
        "beta2": 1.0 - one_minus_beta2,
        "one_minus_beta2": one_minus_beta2,
        "eps_stat": 0.0,
        "mean_floor": eps1,
        "cap": 1.0 / eps1 if eps1 > 0.0 else math.inf,
        "rho": minimum(lr, 1.0 / sqrt(step)),
        "scaled": 1.0,
        "scale_floor": eps2,
        "clip": d,
        "divisor_if_nan": 1.0,
        # lr may be inf, and inf * 0 is nan.
        "decay_fixed": lr * weight_decay if weight_decay else 0.0,
        "decay_scaled": 0.0,
        "beta1": 0.0,
        "one_minus_beta1": 1.0,
    }


_SHARED = (
    second_moment,
    floored_mean,
    row_factor,
    col_factor,
    is_capped,
    precondition,
    inverse,
    col_sum_u2,
    rms,
    finish,
)

RULES = (
    Rule("adafactor", (), SCALARS, (update, *_SHARED), "adafactor", factored=True),
    Rule(
        "adafactor_momentum",
        ("m",),
        SCALARS,
        (update_momentum, *_SHARED),
        "adafactor",
        factored=True,
    ),
)
