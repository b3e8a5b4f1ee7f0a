"""What a raced optimizer is: ours and its peers with the same settings. `optimizers.py` lists them.

A *rule* of the bench is an optimizer with fixed settings. Its *providers* are those who implement
it: fusedstep's backends, torch, transformers and others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from bench.lists import ParameterList, rule_of

OURS = "fusedstep"  # by the backend that `auto` takes, or FUSEDSTEP_BACKEND
OURS_TRITON = "fusedstep-triton"
OURS_CAPTURABLE = "fusedstep-capturable"
OURS_REFERENCE = "fusedstep-reference"
COMPILED = "torch-compiled"

# Ours with options for low precision, on bfloat16 parameters. Raced only if somebody asks.
LOW_PRECISION: dict[str, dict[str, Any]] = {
    "fusedstep-noise": {"stochastic_rounding": True},
    "fusedstep-noise-fp32-states": {"stochastic_rounding": True, "state_dtype": torch.float32},
    "fusedstep-rest16": {"master_weights": True},
    "fusedstep-rest16-bf16-states": {"master_weights": True, "state_dtype": torch.bfloat16},
    "fusedstep-rest8": {"master_weights": 8},
    "fusedstep-int8-states": {"state_dtype": "int8"},
    "fusedstep-rest8-int8-states": {"master_weights": 8, "state_dtype": "int8"},
}

NOT_ON_CPUS = {OURS_TRITON, OURS_CAPTURABLE, "torch-capturable"}
DEEPSPEED = ("deepspeed-cpu", "deepspeed-cpu-low-states")
# On GPUs we skip torch-plain to save memory: nobody would choose it there.
NOT_ON_GPUS = {"torch-plain", *DEEPSPEED}
# Raced only if somebody asks: compiling takes longer than all other races together (DeepSpeed calls
# g++), and the reference is there to be right, not fast.
ONLY_ASKED = {COMPILED, OURS_REFERENCE, *DEEPSPEED, *LOW_PRECISION}
# Packages that the bench depends on. If one is absent, its rows say so.
EXPECTED = ("torch", "transformers")
# What torch is told, by provider.
TORCH_WAYS: dict[str, dict[str, Any]] = {
    "torch-fused": {"fused": True},
    "torch-foreach": {"foreach": True},
    "torch-plain": {"foreach": False},
    "torch-capturable": {"capturable": True},
    COMPILED: {},
}

Params = Iterable[torch.nn.Parameter] | Iterable[dict[str, Any]]
Build = Callable[[Params], torch.optim.Optimizer]


@dataclass(frozen=True)
class Lazily:
    """Builds an optimizer, and imports its module only then: an absent peer costs its own rows and
    no others."""

    module: str
    name: str
    settings: dict[str, Any]
    compiled: bool = False  # its step goes through torch.compile

    def __call__(self, params: Params) -> torch.optim.Optimizer:
        settings = dict(self.settings)
        if self.compiled and "lr" in settings:
            settings["lr"] = torch.tensor(settings["lr"])  # a number would be compiled in
        optimizer = getattr(import_module(self.module), self.name)(params, **settings)
        if self.compiled:
            optimizer.step = torch.compile(optimizer.step)
        return optimizer

    def with_defaults(self, settings: dict[str, Any]) -> Lazily:
        return replace(self, settings={**settings, **self.settings})

    def is_installed(self) -> bool:
        return find_spec(self._package) is not None

    def is_absent(self) -> bool:
        """Whether to leave it out, because it is optional and not installed."""
        return self._package not in EXPECTED and not self.is_installed()

    @property
    def _package(self) -> str:
        return self.module.split(".")[0]


def lazily(module: str, name: str, **settings: Any) -> Lazily:
    return Lazily(module, name, settings)


def by_torch(name: str, *providers: str) -> dict[str, Lazily]:
    """torch's optimizer of this name, by the named providers of TORCH_WAYS."""
    return {
        provider: Lazily("torch.optim", name, TORCH_WAYS[provider], provider == COMPILED)
        for provider in providers
    }


@dataclass(frozen=True)
class Training:
    """How `python -m bench.train` trains with an optimizer and with its peer."""

    lr: float | None = 1e-3  # None: the optimizer chooses its own
    against: str = ""  # the peer's provider; by default the first one
    name: str = ""  # for --optimizer; by default the same as for --rules


@dataclass(frozen=True)
class Entry:
    """An optimizer with its settings: all that the bench has to know of it."""

    label: str  # in README
    rule: str  # of fusedstep.rules: its states say how many bytes a step moves
    ours: str  # module and class
    peers: dict[str, Lazily]  # by provider; they take `settings` too
    settings: dict[str, Any] = field(default_factory=dict)
    capturable: bool = False  # whether ours takes that argument
    dtypes: tuple[str, ...] = ("float32", "bfloat16")  # of parameters and gradients
    only_matrices: bool = False  # it multiplies matrices, and takes nothing else
    on_models: bool = False  # also raced on the lists of whole models
    lists: tuple[str, ...] | None = None  # raced on these alone
    training: Training | None = Training()  # None: it is not trained

    @property
    def factored(self) -> bool:
        return rule_of(self.rule).factored

    @cached_property
    def providers(self) -> dict[str, Lazily]:
        """Everyone who implements it, ours first."""
        module, _, name = self.ours.rpartition(".")

        def ours(**more: Any) -> Lazily:
            return Lazily(module, name, {**self.settings, **more})

        builds = {OURS: ours(), OURS_TRITON: ours(backend="triton")}
        if self.capturable:
            builds[OURS_CAPTURABLE] = ours(capturable=True)
        builds |= {name: peer.with_defaults(self.settings) for name, peer in self.peers.items()}
        for provider, options in LOW_PRECISION.items():
            if not (self.factored and "states" in provider):  # no state is as large as a parameter
                builds[provider] = ours(**options)
        return {**builds, OURS_REFERENCE: ours(backend="reference")}

    def providers_on(self, kind: str) -> dict[str, Lazily]:
        """Those for this kind of device."""
        skipped = NOT_ON_CPUS if kind == "cpu" else NOT_ON_GPUS
        return {name: build for name, build in self.providers.items() if name not in skipped}

    def takes(self, provider: str, dtype: str) -> bool:
        """Whether a provider is for parameters of this dtype."""
        return provider not in LOW_PRECISION or dtype == "bfloat16"

    def races_on(self, chosen: ParameterList) -> bool:
        """Whether we race it on a list. A factored rule treats vectors like any other rule."""
        if chosen.is_model and not self.on_models:
            return False
        if self.only_matrices != chosen.for_products:
            return False
        if self.lists is not None and chosen.name not in self.lists:
            return False
        if self.factored:
            return chosen.has_matrices or chosen.host_bound
        return not chosen.for_factored


@dataclass(frozen=True)
class Race:
    rule: str
    chosen: ParameterList
    dtype: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.rule} {self.chosen.name} {self.dtype}"


def reason(error: Exception) -> str:
    """Why a provider has no time, in one line for the table."""
    if isinstance(error, ModuleNotFoundError) and error.name and "." not in error.name:
        return f"{error.name} is not installed"
    message = (str(error).strip() or "no message").splitlines()[0][:100]
    return f"failed: {type(error).__name__}: {message}"
