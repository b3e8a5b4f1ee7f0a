"""The formulas against closed forms from their definitions, without transformers."""

import inspect
import subprocess
import sys

import numpy as np
import pytest

from fusedstep.schedules import formulas

W, T = 5, 20
S = np.arange(2 * T + 1, dtype=np.float64)
Q = (S - W) / (T - W)
RAMP = S / W


def after_ramp(values, ramp=RAMP):
    return np.where(S < W, ramp, values)


def wave(cycles, x):
    return (1 + np.cos(2 * np.pi * cycles * x)) / 2


def stable(rise, fall, r):
    """Five steps up, eight steps of 1, six steps down."""
    down = (S - 13) / 6
    inner = np.clip(down, 0, 1)
    return np.select(
        [S < 5, S < 13, S < 19],
        [r + (1 - r) * rise(np.clip(RAMP, 0, 1)), np.ones_like(S), r + (1 - r) * fall(inner)],
        r,
    )


RUN = {"num_warmup_steps": W, "num_training_steps": T}
STABLE = {"num_warmup_steps": 5, "num_stable_steps": 8, "num_decay_steps": 6}

CLOSED_FORMS = [
    (formulas.constant, {}, np.ones_like(S)),
    (formulas.constant_with_warmup, {"num_warmup_steps": W}, after_ramp(1.0)),
    (formulas.linear, RUN, after_ramp(np.maximum(0, 1 - Q))),
    (formulas.cosine, {**RUN, "num_cycles": 0.5}, after_ramp(wave(0.5, Q))),
    (formulas.cosine, {**RUN, "num_cycles": 1.7}, after_ramp(wave(1.7, Q))),
    (
        formulas.cosine,
        {**RUN, "num_cycles": 0.5, "min_lr_rate": 0.2},
        after_ramp(0.2 + 0.8 * wave(0.5, Q)),
    ),
    (
        formulas.cosine_with_hard_restarts,
        {**RUN, "num_cycles": 3},
        after_ramp(np.where(Q >= 1, 0, wave(0.5, np.mod(3 * Q, 1)))),
    ),
    (
        formulas.cosine_with_warmup_rate,
        {**RUN, "num_cycles": 0.5, "min_lr_rate": 0.1},
        after_ramp(0.1 + 0.9 * wave(0.5, (S - W + 1) / (T - W)), (S + 1) / W),
    ),
    (
        formulas.cosine_with_warmup_rate,
        {**RUN, "num_cycles": 0.5, "min_lr_rate": 0.1, "warmup_lr_rate": 0.3},
        after_ramp(0.1 + 0.9 * wave(0.5, (S - W + 1) / (T - W)), 0.3 + 0.7 * S / (W - 1)),
    ),
    (
        formulas.polynomial,
        {**RUN, "lr_init": 0.5, "lr_end": 0.1, "power": 2.0},
        after_ramp(np.where(S > T, 0.2, 0.2 + 0.8 * (1 - Q) ** 2)),
    ),
    (
        formulas.inverse_sqrt,
        {"num_warmup_steps": W, "timescale": 7},
        after_ramp(np.sqrt(7 / np.maximum(S + 7 - W, 1))),
    ),
    *(
        (
            formulas.warmup_stable_decay,
            {
                **STABLE,
                "warmup_type": kind,
                "decay_type": kind,
                "num_cycles": 0.5,
                "min_lr_ratio": r,
            },
            stable(rise, fall, r),
        )
        for r in (0.0, 0.25)
        for kind, rise, fall in [
            ("linear", lambda x: x, lambda x: 1 - x),
            ("cosine", lambda x: (1 - np.cos(np.pi * x)) / 2, lambda x: wave(0.5, x)),
            ("1-sqrt", lambda x: 1 - np.sqrt(1 - x), lambda x: 1 - np.sqrt(x)),
        ]
    ),
]


@pytest.mark.parametrize(
    ("formula", "settings", "expected"),
    CLOSED_FORMS,
    ids=[f"{f.__name__}-{i}" for i, (f, _, _) in enumerate(CLOSED_FORMS)],
)
def test_a_formula_is_its_closed_form(formula, settings, expected):
    values = [formula(step, **settings) for step in range(len(S))]
    assert all(type(value) is float for value in values)
    np.testing.assert_allclose(values, expected, rtol=1e-13, atol=1e-15)


def test_every_formula_has_a_closed_form_here():
    public = {f for f in vars(formulas).values() if inspect.getmodule(f) is formulas}
    assert public - {formulas.ramp, formulas.wave} == {formula for formula, _, _ in CLOSED_FORMS}


def test_nothing_of_transformers_is_needed():
    """The same for matplotlib: the package needs torch only."""
    code = """
import sys
sys.modules["transformers"] = sys.modules["matplotlib"] = sys.modules["triton"] = None
import torch, fusedstep.hf, fusedstep.schedules
optimizer = fusedstep.hf.Adafactor([torch.nn.Parameter(torch.ones(1))], lr=1.0, relative_step=False)
print(fusedstep.hf.get_scheduler("linear", optimizer, 4, 8).get_last_lr())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0.0]"
