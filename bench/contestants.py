"""Who trains: for every optimizer ours and the peer, which differ in the module they come from."""

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch

from bench.providers import lazily

OURS, PEER = PAIR = ("ours", "peer")
NUDGED = "nudged-peer"  # how far a rounding in the beginning leads, whoever trains
CONTESTANTS = (*PAIR, NUDGED)
WARMUP_RATIO = 0.1
ADAFACTOR_SCHEDULE = "AdafactorSchedule"  # which shows the step size that hf-adafactor chooses


@dataclass(frozen=True)
class Pair:
    ours: str
    peer: str
    name: str
    lr: float | None  # None: the optimizer chooses its own
    settings: dict[str, Any] = field(default_factory=dict)

    def module(self, contestant: str) -> str:
        return self.ours if contestant == OURS else self.peer

    def made_by(self, contestant: str) -> str:
        return f"{self.module(contestant)}.{self.name}"


TRANSFORMERS = ("fusedstep.hf", "transformers.optimization", "Adafactor")
OPTIMIZERS = {
    "adamw": Pair("fusedstep.optim", "torch.optim", "AdamW", 3e-3, {"fused": True}),
    "adafactor": Pair("fusedstep.optim", "torch.optim", "Adafactor", 3e-2),
    "hf-adafactor": Pair(*TRANSFORMERS, None),
    # What transformers' Trainer passes for optim="adafactor".
    "hf-adafactor-trainer": Pair(
        *TRANSFORMERS, 3e-3, {"scale_parameter": False, "relative_step": False}
    ),
}


def make_optimizer(
    pair: Pair, contestant: str, model: torch.nn.Module, lr: float | None, weight_decay: float
) -> torch.optim.Optimizer:
    from fusedstep.optim import param_groups

    build = lazily(pair.module(contestant), pair.name, lr=lr, **pair.settings)
    return build(param_groups(model, weight_decay))


def make_schedule(
    name: str,
    settings: dict[str, str],
    optimizer: torch.optim.Optimizer,
    pair: Pair,
    contestant: str,
    steps: int,
) -> Any:
    if name == ADAFACTOR_SCHEDULE:
        return getattr(import_module(pair.module(contestant)), name)(optimizer)
    from fusedstep.schedules import by_name

    warmup = {} if follows_a_metric(name) else {"warmup_ratio": WARMUP_RATIO}
    return by_name(name, optimizer, num_training_steps=steps, **warmup, **settings)


@torch.no_grad()
def nudge(model: torch.nn.Module) -> None:
    """Moves the weights to their neighbours, about one unit in the last place away."""
    for parameter in model.parameters():
        parameter.mul_(1.0 + torch.finfo(parameter.dtype).eps)


def follows_a_metric(name: str) -> bool:
    from fusedstep.schedules.by_name import METRIC_CLASSES

    return name in METRIC_CLASSES
