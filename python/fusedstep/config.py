"""Optimizer and schedule from a training config: the `hps:` layout of accmt's YAML, read strictly.

hps:
  epochs: 3                     # or max_steps: 1000
  batch_size: 16                # or [training, evaluation]
  optimizer: {type: AdamW, lr: 1e-3}
  scheduler: {type: CosineWithWarmup, warmup_ratio: 0.1}
  step_scheduler_per_epoch: false
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import words
from .optim.by_name import check_settings, classes, find, make
from .schedules import SCHEDULES, checks
from .schedules import by_name as schedule_by_name

__all__ = ["HyperParameters", "build"]

KEYS = ("epochs", "max_steps", "batch_size", "optimizer", "scheduler", "step_scheduler_per_epoch")
# A config of accmt means transformers' Adafactor; torch's is "optim.Adafactor".
MEANT = {"adafactor": "hf.Adafactor"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# What the run says about a schedule. A config has it in `epochs` and `max_steps`.
OF_THE_RUN = ("num_training_steps", "epochs", "steps_per_epoch", "last_epoch", "optimizer")
WARMUP = ("num_warmup_steps", "warmup_ratio")


class HyperParameters:
    """What accmt's class of that name holds, with the same arguments. Names and settings are
    checked when it is made.

    Arguments:
        epochs: how often the training goes over the data.
        max_steps: the number of steps; if it is given, ``epochs`` does not count.
        batch_size: a number, or two: for training and for evaluation.
        optimizer: a name of ``fusedstep.optim.names()``, or a class of ours. "Adafactor" is
            transformers', as in accmt; "optim.Adafactor" is torch's.
        optim_kwargs: the optimizer's settings. Numbers may be strings, and dtypes are.
        scheduler: a name of ``fusedstep.schedules.SCHEDULES``, or None.
        scheduler_kwargs: the schedule's settings, with ``warmup_ratio`` or ``num_warmup_steps``.
        step_scheduler_per_epoch: the schedule counts epochs. Call its ``step`` after each.

    Example:
        >>> hps = HyperParameters(epochs=2, optimizer="AdamW", optim_kwargs={"lr": "1e-3"})
        >>> hps.to_dict()["hps"]["optimizer"]
        {'type': 'AdamW', 'lr': 0.001}
    """

    def __init__(
        self,
        epochs: int = 1,
        max_steps: int | None = None,
        batch_size: int | Iterable[int] = 1,
        optimizer: str | type[torch.optim.Optimizer] = "SGD",
        optim_kwargs: Mapping[str, Any] | None = None,
        scheduler: str | Callable[..., Any] | None = None,
        scheduler_kwargs: Mapping[str, Any] | None = None,
        step_scheduler_per_epoch: bool = False,
    ) -> None:
        self.epochs = _count(epochs, "epochs")
        self.max_steps = None if words.read(max_steps) is None else _count(max_steps, "max_steps")
        self.batch_size = _batch_size(batch_size)
        self.optimizer, self.optimizer_name = _optimizer(optimizer)
        self.optim_kwargs = {key: _setting(v, key) for key, v in (optim_kwargs or {}).items()}
        check_settings(self.optimizer, self.optim_kwargs)
        self.scheduler, self.scheduler_name = _schedule(scheduler)
        self.scheduler_kwargs = {k: words.read(v) for k, v in (scheduler_kwargs or {}).items()}
        self._check_schedule()
        self.step_scheduler_per_epoch = words.read(step_scheduler_per_epoch)
        if not isinstance(self.step_scheduler_per_epoch, bool):
            raise TypeError(
                "config: step_scheduler_per_epoch should be true or false but is: "
                f"{step_scheduler_per_epoch!r}"
            )
        if self.step_scheduler_per_epoch and self.max_steps is not None:
            raise ValueError(
                "config: step_scheduler_per_epoch=True counts epochs, and "
                f"max_steps={self.max_steps} replaces them. Leave one of them out."
            )

    @classmethod
    def from_config(cls, config: str | PathLike[str] | Mapping[str, Any]) -> HyperParameters:
        """Reads a YAML file, or a dict: with ``hps`` or what is below it.

        Example:
            >>> HyperParameters.from_config({"optimizer": {"type": "AdamW"}}).optimizer_name
            'AdamW'
        """
        given = config if isinstance(config, Mapping) else _load(config)
        if not isinstance(given, Mapping):
            raise TypeError(f"config: {config} should hold a mapping but holds: {given!r}")
        hps = given.get("hps", given)
        if not isinstance(hps, Mapping):
            raise TypeError(f"config: hps should be a mapping but is: {hps!r}")
        for key in hps:
            if key not in KEYS:
                near = words.nearest(key, (*KEYS, "hps"))
                raise ValueError(
                    f"config: unknown key {key!r}{near}. The keys of hps are: {', '.join(KEYS)}."
                )
        parts: dict[str, Any] = {key: hps[key] for key in hps if key not in PARTS}
        for key, kwargs in PARTS.items():
            if hps.get(key) is not None:
                parts[key], parts[kwargs] = _part(hps[key], key)
        if "optimizer" not in parts:
            raise ValueError("config: hps has no optimizer: add optimizer: {type: AdamW, ...}")
        return cls(**parts)

    def to_dict(self) -> dict[str, Any]:
        """The config that ``from_config`` reads, of plain values: names, numbers, lists."""
        optimizer = {key: _plain(value) for key, value in self.optim_kwargs.items()}
        hps: dict[str, Any] = {
            "epochs": self.epochs,
            "max_steps": self.max_steps,
            "batch_size": self.batch_size,
            "optimizer": {"type": self.optimizer_name, **optimizer},
        }
        if self.scheduler is not None:
            hps["scheduler"] = {"type": self.scheduler_name, **self.scheduler_kwargs}
        hps["step_scheduler_per_epoch"] = self.step_scheduler_per_epoch
        return {"hps": hps}

    def get_config(self) -> dict[str, Any]:
        """The same without levels, for a logger. A setting that optimizer and schedule both have is
        there as ``scheduler_NAME`` too."""
        hps = self.to_dict()["hps"]
        flat = {key: hps[key] for key in ("epochs", "max_steps", "batch_size")}
        optimizer = hps["optimizer"]
        flat |= {"optimizer" if key == "type" else key: v for key, v in optimizer.items()}
        for key, value in hps.get("scheduler", {}).items():
            name = "scheduler" if key == "type" else key
            flat[f"scheduler_{name}" if name in flat else name] = value
        return flat

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key)

    def build(
        self, model: Any, steps_per_epoch: int | None = None
    ) -> tuple[torch.optim.Optimizer, Any]:
        """The optimizer and the schedule, which is None if the config has none. ``build`` below
        explains the arguments."""
        optimizer = make(self.optimizer, model, self.optim_kwargs)
        if self.scheduler_name is None:
            return optimizer, None
        run: dict[str, Any] = {"num_training_steps": self.max_steps}
        if self.step_scheduler_per_epoch:
            run = {"epochs": self.epochs, "steps_per_epoch": 1}
        elif self.max_steps is None and steps_per_epoch is not None:
            steps = _count(steps_per_epoch, "steps_per_epoch")
            run = {"epochs": self.epochs, "steps_per_epoch": steps}
        return optimizer, schedule_by_name(
            self.scheduler_name, optimizer, **run, **self.scheduler_kwargs
        )

    def _check_schedule(self) -> None:
        if self.scheduler is None:
            if self.scheduler_kwargs:
                raise ValueError(
                    "config: scheduler settings without a scheduler: "
                    f"{', '.join(self.scheduler_kwargs)}. Give scheduler a type."
                )
            return
        label = f"schedule {self.scheduler_name!r}"
        for key in self.scheduler_kwargs:
            if key in OF_THE_RUN:
                raise ValueError(
                    f"config: {label}: {key} follows from the run. Leave it out of scheduler, and "
                    "set epochs or max_steps beside it."
                )
        known = [key for key in words.arguments_of(self.scheduler) if key not in OF_THE_RUN]
        words.check_known(self.scheduler_kwargs, dict.fromkeys([*known, *WARMUP]), label)


PARTS = {"optimizer": "optim_kwargs", "scheduler": "scheduler_kwargs"}


def build(
    config: str | PathLike[str] | Mapping[str, Any] | HyperParameters,
    model: nn.Module | Iterable[Any],
    steps_per_epoch: int | None = None,
) -> tuple[torch.optim.Optimizer, Any]:
    """The optimizer of a config, and its schedule, or None. Unknown keys, names and settings are
    errors, with the nearest known one. Numbers may be strings, as YAML reads 1e-3.

    A schedule is as long as the training: ``max_steps``, or ``epochs * steps_per_epoch``. With
    ``step_scheduler_per_epoch`` it is ``epochs`` long: step it once for each.

    Arguments:
        config: a YAML file, a dict, or ``HyperParameters``.
        model: a module, for its parameters that require a gradient; or parameters, or groups.
        steps_per_epoch: how often the optimizer steps in an epoch. A schedule that has a length
            needs it, unless the config has ``max_steps``.

    Example:
        >>> hps = {
        ...     "epochs": 2,
        ...     "optimizer": {"type": "AdamW", "lr": "1e-3"},
        ...     "scheduler": {"type": "LinearWithWarmup", "warmup_ratio": 0.1},
        ... }
        >>> opt, schedule = build({"hps": hps}, torch.nn.Linear(8, 8), steps_per_epoch=50)
        >>> opt.step(), schedule.step(), schedule.get_last_lr()
        (None, None, [0.0001])
    """
    if not isinstance(config, HyperParameters):
        config = HyperParameters.from_config(config)
    return config.build(model, steps_per_epoch)


def _load(path: str | PathLike[str]) -> Any:
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError:
        raise ImportError(
            f"config: reading {path} needs PyYAML: pip install pyyaml, or pass a dict"
        ) from None
    with Path(path).open(encoding="utf-8") as file:
        return yaml.safe_load(file)


def _part(given: Any, key: str) -> tuple[Any, dict[str, Any]]:
    """The type and the settings of an optimizer or a schedule."""
    if not isinstance(given, Mapping):
        raise TypeError(f"config: {key} should be like {{type: NAME, ...}} but is: {given!r}")
    if "type" not in given:
        raise ValueError(f"config: {key} has no type: write {key}: {{type: NAME, ...}}")
    return given["type"], {name: value for name, value in given.items() if name != "type"}


def _optimizer(given: Any) -> tuple[type[torch.optim.Optimizer], str]:
    known = classes()
    if isinstance(given, str):
        given = find(MEANT.get(words.plain(given), given))
    for name, kind in known.items():
        if kind is given:
            return kind, "Adafactor" if name == "hf.Adafactor" else _full(name)
    raise TypeError(
        f"config: optimizer should be a name or a class of fusedstep but is: {given!r}. The names "
        f"are: {', '.join(known)}."
    )


def _full(name: str) -> str:
    """The name of a class in a config, where a plain "Adafactor" is transformers'."""
    return f"optim.{name}" if words.plain(name) in MEANT else name


def _schedule(given: Any) -> tuple[Any, str | None]:
    if given is None:
        return None, None
    if isinstance(given, str):
        checks.choice(given, "scheduler", "config", SCHEDULES)
        return SCHEDULES[given], given
    for name in reversed(SCHEDULES):  # the names of configs come last
        if SCHEDULES[name] is given:
            return given, name
    raise TypeError(f"config: scheduler should be a name or a function but is: {given!r}")


def _setting(value: Any, key: str) -> Any:
    """A setting of an optimizer. YAML has no tuples, and no dtypes."""
    value = words.read(value)
    if key == "state_dtype" and isinstance(value, str):
        return DTYPES.get(value.removeprefix("torch."), value)
    return tuple(value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return list(value) if isinstance(value, tuple) else value


def _count(value: Any, key: str) -> int:
    number = checks.finite(words.read(value), key, "config")
    if number < 1 or number != int(number):
        raise ValueError(f"config: {key} should be a whole number of 1 or more but is: {value!r}")
    return int(number)


def _batch_size(value: Any) -> int | list[int]:
    if isinstance(value, (list, tuple)):
        if len(value) != 2:
            raise ValueError(
                "config: batch_size should be a number, or two for training and evaluation, but "
                f"is: {value!r}"
            )
        return [_count(one, "batch_size") for one in value]
    return _count(value, "batch_size")
