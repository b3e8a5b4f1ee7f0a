"""Draws schedules, one small panel for each, so that all fit in one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import checks
from .by_name import METRIC_CLASSES, SCHEDULES, warmup_steps
from .trace import example_loss, trace

COLUMNS = 4
BEYOND = 1.2  # how far to draw, in multiples of num_training_steps: the end is not the last step


def curves(steps: int, warmup: int) -> dict[str, tuple[dict[str, Any], ...]]:
    """For each panel, the arguments of its curves, apart from the number of training steps."""
    own = {"num_warmup_steps": warmup}
    decay = {"num_decay_steps": steps // 3, "min_lr_ratio": 0.1}
    plateau = {"patience": steps // 20}
    return {
        "constant": ({},),
        "constant_with_warmup": (own,),
        "linear": (own,),
        "cosine": (own, {"num_cycles": 1.0, **own}),
        "cosine_with_restarts": ({"num_cycles": 3, **own},),
        "polynomial": ({"power": 0.5, **own}, {"power": 2.0, "lr_end": 0.1, **own}),
        "inverse_sqrt": (own, {"timescale": max(1, 4 * warmup), **own}),
        "cosine_with_min_lr": ({"min_lr_rate": 0.1, **own}, {"min_lr_rate": 0.3, **own}),
        "cosine_warmup_with_min_lr": ({"min_lr_rate": 0.1, "warmup_lr_rate": 0.3, **own},),
        "warmup_stable_decay": tuple(
            {"decay_type": kind, **decay, **own} for kind in ("linear", "cosine", "1-sqrt")
        ),
        "reduce_lr_on_plateau": ({"factor": 0.5, **plateau},),
        "greedy": ({"factor": 0.8, "max_lr": 3.0, **plateau},),
        "CosineAnnealingLR": ({"eta_min": 0.1}, {"eta_min": 0.1, **own}),
        "CosineAnnealingWarmRestarts": ({"T_0": max(1, steps // 10), "T_mult": 2},),
        "CyclicLR": ({"base_lr": 0.1, "max_lr": 1.0, "step_size_up": max(1, steps // 6)},),
        "ExponentialLR": ({"gamma": 0.05 ** (1 / steps)},),
        "LinearLR": ({"start_factor": 0.25, "total_iters": steps // 2},),
        "OneCycleLR": ({"max_lr": 1.0},),
        "StepLR": tuple(
            {"step_size": max(1, steps // 4), "gamma": 0.5, **more} for more in ({}, own)
        ),
    }


def draw(
    path: str | Path, names: Sequence[str] = (), *, steps: int = 1000, warmup: float = 0.1
) -> None:
    """Saves a picture of the named schedules, or of all, as multiples of the initial lr.

    Names of the same function share a panel. The text below a panel has the arguments that its
    curves share; the legend has those in which they differ.

    Example:
        >>> import tempfile
        >>> draw(tempfile.mkdtemp() + "/cosine.png", ["cosine"], steps=100)
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "drawing schedules needs matplotlib: pip install 'fusedstep[plot]'"
        ) from error
    steps = int(checks.not_negative(steps, "steps", "draw"))
    if steps < 1:
        raise ValueError(f"draw: steps should be 1 or more but is: {steps}")
    all_curves = curves(steps, warmup_steps(warmup, None, steps, "draw") or 0)
    chosen = dict.fromkeys(_drawn_as(name) for name in names) or all_curves

    across = min(COLUMNS, len(chosen))
    down = math.ceil(len(chosen) / across)
    figure = Figure(figsize=(3.4 * across, 2.3 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharex=True).flatten()
    for panel in panels[len(chosen) :]:
        panel.set_visible(False)
    for panel, name in zip(panels, chosen, strict=False):
        _draw_on(panel, name, all_curves[name], steps)
    figure.supxlabel(f"step (num_training_steps={steps})", fontsize=8)
    figure.supylabel("lr / initial lr", fontsize=8)
    figure.savefig(path, dpi=90)


def _draw_on(panel: Any, name: str, curves: tuple[dict[str, Any], ...], steps: int) -> None:
    # OneCycleLR raises after its last step.
    shown = steps if name == "OneCycleLR" else int(BEYOND * steps)
    first, *others = curves
    common = {
        key: value
        for key, value in first.items()
        if all(given.get(key) == value for given in others)
    }
    for given in curves:
        own = {key: value for key, value in given.items() if key not in common}
        values = trace(name, steps, shown, **given)
        panel.plot(range(shown), values, label=_said(own) or None, linewidth=1.4)
    if name in METRIC_CLASSES:
        loss = [example_loss(step, steps) for step in range(shown)]
        panel.plot(range(shown), loss, ":", color="gray", label="the loss it follows")
    panel.axvline(steps, color="lightgray", linewidth=0.8, zorder=0)
    panel.set_title(" = ".join([name, *_other_names(name)]), fontsize=8)
    panel.set_xlabel(_said(common), fontsize=6.5)
    panel.set_ylim(bottom=0.0)
    panel.tick_params(labelsize=7)
    if panel.get_legend_handles_labels()[1]:
        panel.legend(fontsize=6, framealpha=0.6, edgecolor="none")


def _drawn_as(name: str) -> str:
    checks.choice(name, "name", "draw", SCHEDULES)
    return next(own for own in SCHEDULES if SCHEDULES[own] is SCHEDULES[name])


def _said(given: dict[str, Any]) -> str:
    return ", ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in given.items()
    )


def _other_names(name: str) -> list[str]:
    return [own for own in SCHEDULES if SCHEDULES[own] is SCHEDULES[name] and own != name]
