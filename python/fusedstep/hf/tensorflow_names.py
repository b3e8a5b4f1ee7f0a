"""TensorFlow's names of AdamWeightDecay's arguments, and its patterns of what decays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from .. import words
from ..optim.param_groups import matcher

LABEL = "AdamWeightDecay"
# Keras' defaults. Each is an object of its own: an argument that is another one was given.
LR, EPS, DECAY = float("1e-3"), float("1e-7"), float("0")
BETAS = (float("0.9"), float("0.999"))
# What Keras writes into a config besides arguments.
NOT_ARGUMENTS = ("is_legacy_optimizer",)


def number(name: str, value: Any, default: Any, other_name: str, other: Any) -> Any:
    """The value of an argument that has torch's and TensorFlow's name."""
    found = words.one_of_two(name, value, default, other_name, other, LABEL)
    if callable(found) and not isinstance(found, Tensor):
        raise TypeError(
            f"{LABEL}: {name if other is None else other_name} is a {type(found).__name__}. "
            "PyTorch's schedules are steps of their own: give a number here, and make "
            "fusedstep.hf.WarmUp(optimizer=..., decay_schedule_fn=...) or another schedule."
        )
    return found


def betas(given: Any, beta_1: Any, beta_2: Any) -> Any:
    """The two betas, of which TensorFlow has each by itself."""
    for name, one in (("beta_1", beta_1), ("beta_2", beta_2)):
        words.one_of_two("betas", given, BETAS, name, one, LABEL)
    if beta_1 is None and beta_2 is None:
        return given
    return (BETAS[0] if beta_1 is None else beta_1, BETAS[1] if beta_2 is None else beta_2)


def split(
    params: Iterable[Any],
    include: str | Iterable[str] | None,
    exclude: str | Iterable[str] | None,
) -> Iterable[Any]:
    """Two groups: what decays, and what does not. Without patterns the parameters stay as they
    are."""
    if include is None and exclude is None:
        return params
    included = matcher(include, "include_in_weight_decay")
    excluded = matcher(exclude, "exclude_from_weight_decay")
    decayed: list[tuple[str, Tensor]] = []
    spared: list[tuple[str, Tensor]] = []
    for pair in params:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise TypeError(
                f"{LABEL}: include_in_weight_decay and exclude_from_weight_decay search in names, "
                f"but params hold a {type(pair).__name__}. Pass model.named_parameters(), or use "
                "fusedstep.optim.param_groups."
            )
        name = pair[0]
        decays = included(name) or not excluded(name)
        (decayed if decays else spared).append(pair)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]] or params


def settings_of(config: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """The arguments in a config. Those that are no arguments are errors."""
    settings = {key: value for key, value in config.items() if key not in NOT_ARGUMENTS}
    known = [name for name in words.arguments_of(kind) if name != "params"]
    words.check_known(settings, known, f"{LABEL}.from_config: {LABEL}")
    if isinstance(settings.get("learning_rate"), Mapping):
        kind_of_schedule = settings["learning_rate"].get("class_name", "a schedule")
        raise TypeError(
            f"{LABEL}.from_config: learning_rate is {kind_of_schedule}, which PyTorch keeps apart: "
            "pass learning_rate=... as a number, and make the schedule with "
            "fusedstep.hf.create_optimizer or fusedstep.hf.WarmUp."
        )
    return settings
