"""The settings of a training run, checked before it starts."""

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from bench.contestants import ADAFACTOR_SCHEDULE, OPTIMIZERS
from bench.devices import DEVICES
from bench.lists import DTYPES
from bench.models import HEAD_WIDTH, MODELS

ACCUMULATE = ("grad", "float32")
POSITIVE = ("steps", "batch", "micro_batches", "context", "width", "layers", "evaluate_every")


@dataclass(frozen=True)
class Settings:
    """Everything that decides the numbers of a run, beside the text and the machine."""

    model: str = "gpt"
    optimizer: str = "adamw"
    schedule: str = ""  # empty: the optimizer's own, or linear
    schedule_settings: tuple[str, ...] = ()  # NAME=VALUE, such as power=2
    lr: float | None = None  # None: the one that bench/optimizers.py has
    weight_decay: float = 0.01
    clip: float = 1.0  # the largest norm of all gradients together; inf clips nothing
    steps: int = 250
    batch: int = 16
    micro_batches: int = 1
    accumulate: str = "grad"
    context: int = 64
    width: int = 128
    layers: int = 2
    dropout: float = 0.0
    dtype: str = "float32"
    seed: int = 0
    evaluate_every: int = 25
    device: str = "cpu"
    threads: int = 0  # 0: torch's own choice

    def __post_init__(self) -> None:
        one_of("model", self.model, MODELS)
        one_of("optimizer", self.optimizer, OPTIMIZERS)
        one_of("accumulate", self.accumulate, ACCUMULATE)
        one_of("dtype", self.dtype, DTYPES)
        one_of("device", self.device, DEVICES)
        for name in POSITIVE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} should be 1 or more but is: {getattr(self, name)}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout should be from 0 to below 1 but is: {self.dropout}")
        if not 0.0 < self.clip:
            raise ValueError(f"clip should be above 0 but is: {self.clip}; inf clips nothing")
        if not 0.0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay should be 0 or more but is: {self.weight_decay}")
        if self.width % HEAD_WIDTH:
            raise ValueError(
                f"width should be a multiple of {HEAD_WIDTH}, the width of an attention head, but "
                f"is: {self.width}"
            )
        if self.batch % self.micro_batches:
            raise ValueError(
                f"batch={self.batch} cannot be cut into micro_batches={self.micro_batches} of one "
                "size: give a batch that is a multiple"
            )
        if self.threads < 0:
            raise ValueError(f"threads should be 0 (torch's choice) or more but is: {self.threads}")
        if reason := DEVICES[self.device].why_absent():
            raise ValueError(f"device {self.device}: {reason}")
        self._complete_schedule()
        object.__setattr__(self, "threads", self.threads or torch.get_num_threads())

    def _complete_schedule(self) -> None:
        pair = OPTIMIZERS[self.optimizer]
        if pair.lr is None:
            if self.lr is not None or self.schedule not in ("", ADAFACTOR_SCHEDULE):
                raise ValueError(
                    f"{self.optimizer} chooses its own step size: leave out lr and schedule, or "
                    "take hf-adafactor-trainer"
                )
            object.__setattr__(self, "schedule", ADAFACTOR_SCHEDULE)
        else:
            from fusedstep.schedules import SCHEDULES

            object.__setattr__(self, "schedule", self.schedule or "linear")
            object.__setattr__(self, "lr", pair.lr if self.lr is None else self.lr)
            one_of("schedule", self.schedule, SCHEDULES)
        for entry in self.schedule_settings:
            if "=" not in entry:
                raise ValueError(f"schedule_settings should be as in power=2 but holds: {entry!r}")

    @property
    def name(self) -> str:
        return f"{self.model}-{self.optimizer}"

    def schedule_arguments(self) -> dict[str, str]:
        pairs = (entry.partition("=") for entry in self.schedule_settings)
        return {name: value for name, _, value in pairs}


def one_of(argument: str, word: str, choices: Iterable[str]) -> None:
    known = list(choices)
    if word not in known:
        near = difflib.get_close_matches(word, known, 1)
        raise ValueError(
            f"{argument} should be one of {', '.join(known)} but is: {word}"
            + (f" (did you mean {near[0]}?)" if near else "")
        )
