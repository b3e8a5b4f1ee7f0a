"""The optimizers that are raced: for every rule ours, and the peers with the same settings."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from bench.lists import ParameterList

OURS = "fusedstep"  # the backend that `auto` takes, or that FUSEDSTEP_BACKEND asks for
OURS_TRITON = "fusedstep-triton"
OURS_CAPTURABLE = "fusedstep-capturable"
OURS_REFERENCE = "fusedstep-reference"
COMPILED = "torch-compiled"

Build = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Rule:
    family: str
    dtypes: tuple[str, ...]
    providers: dict[str, Build]
    only_on_gpus: dict[str, Build] = field(default_factory=dict)
    others: dict[str, Build] = field(default_factory=dict)  # raced where they are installed

    def providers_on(self, kind: str) -> dict[str, Build]:
        if kind == "cpu":
            return {**self.providers, **self.others}
        every = {**self.providers, **self.only_on_gpus, **self.others}
        # Ours come first. Memory is for those whom somebody with a GPU would choose.
        names = [name for name in every if name != "torch-plain"]
        return {name: every[name] for name in sorted(names, key=lambda n: not n.startswith(OURS))}


@dataclass(frozen=True)
class Race:
    rule: str
    chosen: ParameterList
    dtype: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.rule} {self.chosen.name} {self.dtype}"


@dataclass(frozen=True)
class Lazily:
    """An optimizer of a module that is imported at the first use: an absent peer costs its own rows
    and no others."""

    module: str
    name: str
    settings: dict[str, Any]

    def __call__(self, params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return getattr(import_module(self.module), self.name)(params, **self.settings)

    def is_installed(self) -> bool:
        return find_spec(self.module.split(".")[0]) is not None


def lazily(module: str, name: str, **settings: Any) -> Lazily:
    return Lazily(module, name, settings)


def compiled(build: Build) -> Build:
    """The same, with its step through torch.compile."""

    def make(params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = build(params)
        optimizer.step = torch.compile(optimizer.step)  # type: ignore[method-assign]
        return optimizer

    return make


ADAMW = {"lr": 1e-3}
BY_TRITON = {"backend": "triton"}
BY_REFERENCE = {"backend": "reference"}
# What transformers' Trainer passes for optim="adafactor".
TRAINER = {"lr": 1e-3, "scale_parameter": False, "relative_step": False}

RULES = {
    "adamw": Rule(
        "adamw",
        ("float32",),
        {
            OURS: lazily("fusedstep.optim", "AdamW", **ADAMW),
            "torch-fused": lazily("torch.optim", "AdamW", fused=True, **ADAMW),
            "torch-foreach": lazily("torch.optim", "AdamW", foreach=True, **ADAMW),
            "torch-plain": lazily("torch.optim", "AdamW", foreach=False, **ADAMW),
        },
        {
            OURS_TRITON: lazily("fusedstep.optim", "AdamW", **ADAMW, **BY_TRITON),
            OURS_CAPTURABLE: lazily("fusedstep.optim", "AdamW", capturable=True, **ADAMW),
            "torch-capturable": lazily("torch.optim", "AdamW", capturable=True, **ADAMW),
        },
        {
            OURS_REFERENCE: lazily("fusedstep.optim", "AdamW", **ADAMW, **BY_REFERENCE),
            COMPILED: compiled(lazily("torch.optim", "AdamW", lr=torch.tensor(1e-3))),
            "optimi": lazily("optimi", "AdamW", **ADAMW),
            "flashoptim": lazily("flashoptim", "FlashAdamW", **ADAMW),
            "torchao": lazily("torchao.optim", "_AdamW", **ADAMW),
            "torchao-8bit": lazily("torchao.optim", "AdamW8bit", **ADAMW),
            "apex": lazily("apex.optimizers", "FusedAdam", **ADAMW),
            "transformer-engine": lazily(
                "transformer_engine.pytorch.optimizers", "FusedAdam", **ADAMW
            ),
            "deepspeed-cpu": lazily("deepspeed.ops.adam", "DeepSpeedCPUAdam", **ADAMW),
        },
    ),
    "adafactor-hf-trainer": Rule(
        "adafactor",
        ("float32", "bfloat16"),
        {
            OURS: lazily("fusedstep.hf", "Adafactor", **TRAINER),
            "transformers": lazily("transformers.optimization", "Adafactor", **TRAINER),
        },
        {OURS_TRITON: lazily("fusedstep.hf", "Adafactor", **TRAINER, **BY_TRITON)},
        {
            OURS_REFERENCE: lazily("fusedstep.hf", "Adafactor", **TRAINER, **BY_REFERENCE),
            "adafactor8bit": lazily("adafactor8bit", "Adafactor8Bit", **TRAINER),
        },
    ),
    "adafactor-hf-defaults": Rule(
        "adafactor",
        ("float32", "bfloat16"),
        {
            OURS: lazily("fusedstep.hf", "Adafactor"),
            "transformers": lazily("transformers.optimization", "Adafactor"),
        },
        {OURS_TRITON: lazily("fusedstep.hf", "Adafactor", **BY_TRITON)},
        {OURS_REFERENCE: lazily("fusedstep.hf", "Adafactor", **BY_REFERENCE)},
    ),
    "adafactor-torch": Rule(
        "adafactor",
        ("float32", "bfloat16"),
        {
            OURS: lazily("fusedstep.optim", "Adafactor"),
            "torch-foreach": lazily("torch.optim", "Adafactor", foreach=True),
            "torch-plain": lazily("torch.optim", "Adafactor", foreach=False),
        },
        {
            OURS_TRITON: lazily("fusedstep.optim", "Adafactor", **BY_TRITON),
            OURS_CAPTURABLE: lazily("fusedstep.optim", "Adafactor", capturable=True),
        },
        {
            OURS_REFERENCE: lazily("fusedstep.optim", "Adafactor", **BY_REFERENCE),
            COMPILED: compiled(lazily("torch.optim", "Adafactor")),
        },
    ),
}

PROVIDERS = tuple(
    dict.fromkeys(
        name
        for rule in RULES.values()
        for name in (*rule.providers, *rule.only_on_gpus, *rule.others)
    )
)
# Raced only if somebody asks: compiling takes longer than all other races together, and the
# reference is there to be right.
ONLY_ASKED = (COMPILED, OURS_REFERENCE)
ABSENT = {
    name
    for rule in RULES.values()
    for name, build in rule.others.items()
    if isinstance(build, Lazily) and not build.is_installed()
}
HERE = tuple(name for name in PROVIDERS if name not in (*ONLY_ASKED, *ABSENT))


def reason(error: Exception) -> str:
    """One line for the table: why a provider has no time."""
    if isinstance(error, ModuleNotFoundError) and error.name and "." not in error.name:
        return f"{error.name} is not installed"
    said = (str(error).strip() or "no message").splitlines()[0][:100]
    return f"failed: {type(error).__name__}: {said}"
