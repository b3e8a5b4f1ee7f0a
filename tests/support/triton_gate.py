"""The launches that the checks of Triton's kernels compile, for each GPU, and the facts found."""

from __future__ import annotations

import itertools

import torch
import triton

from fusedstep.rules import RULES
from tests.support.compiled import (
    STORED_SHAPES,
    compile_for,
    recorded_launches,
    without_twins,
)
from tests.support.compiled_checks import storage
from tests.support.exchange import ROLES
from tests.support.rule_cases import CASE_OF
from tests.support.stored_cases import STORED, fits

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
# The dtypes of parameter, gradient, states. The first two are the most common.
MIXES = [(F32,), (BF16, BF16, F32), (BF16,), (F16, F16, F32), (F64,)]
TARGETS = ["sm_80", "sm_90", "sm_100", "gfx942"]
# Rules and the options for low precision that they are compiled with.
STORED_PAIRS = [
    (rule, stored)
    for rule in ("adamw", "adafactor", "adafactor_momentum")
    for stored in STORED
    if fits(CASE_OF[rule], stored)
]
UNALIGNED_PAIRS = [
    (rule, stored)
    for rule, stored in STORED_PAIRS
    if stored.name in ("rest16-bf16-states", "noisy", "int8-noisy")
]
USUAL_PAIRS = [
    (rule, stored)
    for rule, stored in STORED_PAIRS
    if (rule, stored.name)
    in (("adamw", "rest16-bf16-states"), ("adamw", "int8-noisy"), ("adafactor", "noisy"))
]
RELEASE = "Triton " + ".".join(triton.__version__.split(".")[:2])


def mixes_for(target, aligned):
    return MIXES if target == "sm_90" and aligned else MIXES[:2]


def record(pool, rules, mixes, aligned, roles=(None,)):
    """The launches of steps, for each combination of choices."""
    jobs = [
        pool.submit(recorded_launches, rule, (*mix, mix[-1], mix[-1])[:3], *how)
        for rule, mix, *how in itertools.product(rules, mixes, aligned, roles)
    ]
    return list(dict.fromkeys(launch for job in jobs for launch in job.result()))


def record_norm(pool, mixes):
    """The launches that make the norm of the gradients. They do not depend on the rule."""
    dtypes = list(dict.fromkeys(mix[:2][-1] for mix in mixes))
    jobs = [
        pool.submit(recorded_launches, "adamw", (dtype,) * 3, True, clips=True) for dtype in dtypes
    ]
    return list(dict.fromkeys(launch for job in jobs for launch in job.result()))


def record_stored(pool, pairs, aligned):
    """The launches of steps with options for low precision, from pairs of a rule and options: those
    that other steps do not have."""
    jobs = [
        pool.submit(
            recorded_launches,
            rule,
            (stored.dtype,) * 3,
            is_aligned,
            shapes=STORED_SHAPES,
            options=tuple(stored.options.items()),
        )
        for (rule, stored), is_aligned in itertools.product(pairs, aligned)
    ]
    found = dict.fromkeys(launch for job in jobs for launch in job.result())
    return [launch for launch in found if storage(launch)]


def compiled(pool, launches, target):
    jobs = [pool.submit(compile_for, launch, target) for launch in launches]
    return [(launch, target, job.result()) for launch, job in zip(launches, jobs, strict=True)]


def found_on(pool, target, usual=False):
    """The facts about every launch, for a target. Only of aligned tensors in float32 if `usual`."""
    factored = [name for name, rule in RULES.items() if rule.factored]
    if usual:
        launches = record(pool, RULES, MIXES[:1], [True]) + record_norm(pool, MIXES[:1])
        launches += record_stored(pool, USUAL_PAIRS, [True])
        return compiled(pool, without_twins(launches), target)
    launches = record(pool, RULES, mixes_for(target, True), [True])
    launches += record_norm(pool, mixes_for(target, True))
    # The extra work of an exchange does not depend on the momentum.
    launches += record(pool, factored[:1], mixes_for(target, True), [True], ROLES)
    launches += record_stored(pool, STORED_PAIRS, [True])
    if target == "sm_90":
        launches += record(pool, RULES, mixes_for(target, False), [False])
        launches += record_stored(pool, UNALIGNED_PAIRS, [False])
        # Only with split columns are tiles of short rows in chunks.
        launches += record(pool, factored[:1], mixes_for(target, False), [False], ["cols"])
    return compiled(pool, without_twins(launches), target)
