"""`python -m fusedstep convert`: converts a checkpoint file for another package's optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .convert import DIALECTS, Dialect, converted_states, groups_of, read

Group = dict[str, Any]

# Both multiply by rms(p). Before, torch's takes min(lr, 1 / sqrt(t)), and so does transformers' if
# it chooses the step size itself, with this number for lr.
RELATIVE_LR = 1e-2

OF = {"torch": "torch's", "transformers": "transformers'"}


def convert_file(source: str | Path, target: str | Path, to: str, lossy: bool = False) -> str:
    """Reads an optimizer's state dict, writes it for the same optimizer of package `to`, and says
    what it did. Hyper-parameters are translated where both packages can say the same.

    Arguments:
        source: a file as ``torch.save(optimizer.state_dict(), source)`` makes it.
        target: the file to write.
        to: ``"torch"`` or ``"transformers"``: also the package that fusedstep's class mirrors.
        lossy: takes the nearest options, and drops or starts anew what only one of them keeps.
    """
    state_dict = torch.load(source, map_location="cpu", weights_only=True)
    old_groups = groups_of(state_dict)
    states = [state for state in state_dict["state"].values() if state]
    if not states:
        raise ValueError(f"{source} holds no states: its optimizer has not made a step")
    family = read(states[0], "its first parameter")[0].family
    wanted = DIALECTS[to, family]
    from_torch = "d" in old_groups[0] if family == "Adafactor" else "amsgrad" in old_groups[0]
    if from_torch == (to == "torch"):
        raise ValueError(f"{source} is a state dict of {OF[to]} {family} already")
    groups = [
        {**_translated(group, wanted, lossy, f"group {index}"), "params": group["params"]}
        for index, group in enumerate(old_groups)
    ]
    converted = converted_states(state_dict, wanted, groups, lossy)
    torch.save({"state": converted, "param_groups": groups}, target)
    return f"saved {target}: {OF[to]} {family}, parameters with a state: {len(converted)}"


def _translated(group: Group, target: Dialect, lossy: bool, where: str) -> Group:
    """A group's options for the target, with all its defaults."""

    def lost(option: str, why: str) -> None:
        if not lossy:
            raise ValueError(
                f"{where} has {option}={group[option]!r}, and {why}. Take the nearest options "
                "with --lossy."
            )

    made: Group = {"lr": group["lr"], "weight_decay": group["weight_decay"]}
    if target.family == "AdamW":
        made |= {"betas": group["betas"], "eps": group["eps"]}
        if target.package == "transformers":
            for option in ("amsgrad", "maximize"):
                if group.get(option):
                    lost(option, "transformers' AdamW has no such option")
            return {**made, "correct_bias": True}
        if not group.get("correct_bias", True):
            lost("correct_bias", "torch's AdamW always corrects")
        return {**made, **_ADAMW}
    if target.package == "transformers":
        if group["maximize"]:
            lost("maximize", "transformers' Adafactor has no such option")
        is_relative = float(group["lr"]) == RELATIVE_LR
        return {
            "lr": None if is_relative else group["lr"],
            "eps": (1e-30, group["eps"][1]),
            "clip_threshold": group["d"],
            "decay_rate": group["beta2_decay"],
            "beta1": None,
            "weight_decay": group["weight_decay"],
            "scale_parameter": True,
            "relative_step": is_relative,
            "warmup_init": False,
        }
    if not group["scale_parameter"]:
        lost("scale_parameter", "torch's Adafactor always multiplies lr by rms(p)")
    if group["warmup_init"]:
        lost("warmup_init", "torch's Adafactor does not warm up")
    return {
        "lr": RELATIVE_LR if group["relative_step"] else group["lr"],
        "beta2_decay": group["decay_rate"],
        "eps": (None, group["eps"][1]),
        "d": group["clip_threshold"],
        "weight_decay": group["weight_decay"],
        "foreach": None,
        "maximize": False,
    }


# Options of torch's AdamW that transformers' has not.
_ADAMW: Group = {
    "amsgrad": False,
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
    "decoupled_weight_decay": True,
}
