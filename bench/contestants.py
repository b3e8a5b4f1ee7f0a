"""Who trains: ours and a peer, for every optimizer in `optimizers.py`."""

from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch

from bench.optimizers import RULES
from bench.providers import OURS as FUSEDSTEP
from bench.providers import Lazily

OURS, PEER = PAIR = ("ours", "peer")
NUDGED = "nudged-peer"  # the peer from weights that differ by one rounding, to compare with
# Ours, and how it stores a model: the dtype of its parameters, and options.
STORED: dict[str, tuple[str, dict[str, Any]]] = {
    "float32": ("float32", {}),
    "bfloat16": ("bfloat16", {}),
    "noise": ("bfloat16", {"stochastic_rounding": True}),
    "rest16": ("bfloat16", {"master_weights": True}),
    "rest8": ("bfloat16", {"master_weights": 8}),
    "rest8-int8-states": ("bfloat16", {"master_weights": 8, "state_dtype": "int8"}),
}
CONTESTANTS = (*PAIR, NUDGED, *STORED)
WARMUP_RATIO = 0.1
ADAFACTOR_SCHEDULE = "AdafactorSchedule"  # it shows the step size that hf-adafactor chooses


@dataclass(frozen=True)
class Pair:
    ours: Lazily
    peer: Lazily
    lr: float | None  # None: the optimizer chooses its own

    def optimizer(self, contestant: str) -> Lazily:
        if contestant in STORED:
            _, options = STORED[contestant]
            return replace(self.ours, settings={**self.ours.settings, **options})
        return self.ours if contestant == OURS else self.peer

    def module(self, contestant: str) -> str:
        return self.optimizer(contestant).module

    def made_by(self, contestant: str) -> str:
        return f"{self.module(contestant)}.{self.optimizer(contestant).name}"


def pairs() -> dict[str, Pair]:
    found = {}
    for name, entry in RULES.items():
        training = entry.training
        if training is None or not entry.peers:
            continue
        ours, peer = (
            entry.providers[provider]
            for provider in (FUSEDSTEP, training.against or next(iter(entry.peers)))
        )
        found[training.name or name] = Pair(ours, peer, training.lr)
    return found


OPTIMIZERS = pairs()


def make_optimizer(
    pair: Pair, contestant: str, model: torch.nn.Module, lr: float | None, weight_decay: float
) -> torch.optim.Optimizer:
    from fusedstep.optim import param_groups

    optimizer = pair.optimizer(contestant)
    build = replace(optimizer, settings={**optimizer.settings, "lr": lr})
    return build(param_groups(model, weight_decay))


def make_schedule(
    name: str,
    settings: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    pair: Pair,
    contestant: str,
    steps: int,
) -> Any:
    if name == ADAFACTOR_SCHEDULE:
        return getattr(import_module(pair.module(contestant)), name)(optimizer)
    from fusedstep.schedules import by_name

    warmup: dict[str, Any] = {} if follows_a_metric(name) else {"warmup_ratio": WARMUP_RATIO}
    return by_name(name, optimizer, num_training_steps=steps, **warmup, **settings)


@torch.no_grad()
def nudge(model: torch.nn.Module) -> None:
    """Moves each weight by about one unit in the last place."""
    for parameter in model.parameters():
        parameter.mul_(1.0 + torch.finfo(parameter.dtype).eps)


def follows_a_metric(name: str) -> bool:
    from fusedstep.schedules.by_name import METRIC_CLASSES

    return name in METRIC_CLASSES
