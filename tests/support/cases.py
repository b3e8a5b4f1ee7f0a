"""The table of cases that the contracts run over: optimizers, options, dtypes and shapes."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers.optimization
from torch import Tensor

import fusedstep.hf
import fusedstep.optim
from fusedstep.hf.adam_weight_decay import AdamWeightDecay
from tests.support.plain_peers import Lion, OldAdamW, OldAdamWeightDecay

Params = list[torch.nn.Parameter]


@dataclass(frozen=True)
class Case:
    """An optimizer with options. `peer` takes the same options. `elementwise` rules are exact."""

    name: str
    ours: type[torch.optim.Optimizer]
    peer: type[torch.optim.Optimizer]
    options: dict[str, Any] = field(default_factory=dict)
    only_ours: dict[str, Any] = field(default_factory=dict)

    def make(self, params: Any, **more: Any) -> Any:
        return self.ours(params, **self.options, **self.only_ours, **more)

    def make_peer(self, params: Any, **more: Any) -> Any:
        return self.peer(params, **self.options, **more)

    def takes(self, option: str) -> bool:
        """Whether our constructor has this argument."""
        return option in inspect.signature(self.ours).parameters

    @property
    def has_counter(self) -> bool:
        """Whether states have a step counter. Those of torch's SGD have none."""
        return self.ours is not fusedstep.optim.SGD

    @property
    def starts_empty(self) -> bool:
        """Whether the first step makes the states. torch's Adagrad makes them at construction."""
        return self.ours is not fusedstep.optim.Adagrad

    def __str__(self) -> str:
        return self.name


# Options that our class has and its peer has not, with their defaults. They are keyword-only and in
# the groups. All other arguments have the peer's names, order and defaults.
EXTENSIONS: dict[type, dict[str, Any]] = {
    fusedstep.optim.Adafactor: {"capturable": False},
    AdamWeightDecay: {"amsgrad": False, "clipvalue": None, "decay": 0.0},
}
if "decoupled_weight_decay" not in inspect.signature(torch.optim.Adam).parameters:  # torch 2.6
    EXTENSIONS[fusedstep.optim.Adam] = {"decoupled_weight_decay": False}
# Second names of arguments, and others that only the constructor reads. They are keyword-only.
SECOND_NAMES: dict[type, tuple[str, ...]] = {
    AdamWeightDecay: (
        "learning_rate",
        "beta_1",
        "beta_2",
        "epsilon",
        "weight_decay_rate",
        "include_in_weight_decay",
        "exclude_from_weight_decay",
        "name",
    )
}

# Arguments that every class of ours has and no peer, with their defaults. They are keyword-only,
# and not in the groups.
ALWAYS_OURS: dict[str, Any] = {
    "max_grad_norm": None,
    "state_dtype": None,
    "master_weights": False,
    "stochastic_rounding": False,
    "seed": 0,
    "backend": None,
}

QUIET = {"no_deprecation_warning": True}
HF, HF_PEER = fusedstep.hf.Adafactor, transformers.optimization.Adafactor
FIXED = {"scale_parameter": False, "relative_step": False}

# Of torch's elementwise optimizers, by name: the class, and options for both. The first one of each
# rule has few options. Where eps is large, an update would else divide by what rounding left over,
# and the peer itself would be far from float64, or infinite in float16.
OF_TORCH: dict[str, tuple[str, dict[str, Any]]] = {
    "adam": ("Adam", {"lr": 0.05, "eps": 1e-4}),
    "adam-decay": ("Adam", {"lr": 0.02, "weight_decay": 0.3, "maximize": True, "eps": 1e-3}),
    "adam-amsgrad": (
        "Adam",
        {"lr": 0.05, "weight_decay": 0.1, "amsgrad": True, "betas": (0.8, 0.6), "eps": 1e-3},
    ),
    "adam-decoupled": (
        "Adam",
        {"lr": 0.05, "weight_decay": 0.1, "decoupled_weight_decay": True, "eps": 1e-3},
    ),
    "rmsprop": ("RMSprop", {}),
    "rmsprop-momentum": (
        "RMSprop",
        {"momentum": 0.9, "weight_decay": 0.1, "maximize": True, "alpha": 0.8, "eps": 1e-2},
    ),
    "rmsprop-centered": ("RMSprop", {"centered": True, "eps": 1e-2}),
    "rmsprop-centered-momentum": (
        "RMSprop",
        {"centered": True, "momentum": 0.5, "alpha": 0.9, "eps": 1e-2},
    ),
    "adagrad": ("Adagrad", {}),
    "adagrad-decay": (
        "Adagrad",
        {"lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.3, "maximize": True},
    ),
    "adadelta": ("Adadelta", {}),
    "adadelta-decay": ("Adadelta", {"lr": 0.5, "rho": 0.7, "weight_decay": 0.1, "maximize": True}),
    "adamax": ("Adamax", {"lr": 0.05}),
    "adamax-decay": (
        "Adamax",
        {"weight_decay": 0.1, "maximize": True, "betas": (0.5, 0.7), "eps": 1e-3},
    ),
    "radam": ("RAdam", {"lr": 0.05}),
    "radam-decay": ("RAdam", {"weight_decay": 0.1, "maximize": True, "betas": (0.8, 0.9)}),
    "radam-decoupled": ("RAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    "sgd": ("SGD", {"lr": 0.1, "weight_decay": 0.1, "maximize": True}),
    "sgd-momentum": ("SGD", {"momentum": 0.9}),
    "sgd-dampening": ("SGD", {"lr": 0.1, "momentum": 0.5, "dampening": 0.3, "weight_decay": 0.1}),
    "sgd-nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    "rprop": ("Rprop", {}),
    "rprop-etas": ("Rprop", {"etas": (0.3, 1.5), "step_sizes": (1e-3, 0.1), "maximize": True}),
    "nadam": ("NAdam", {"lr": 0.05}),
    "nadam-decay": (
        "NAdam",
        {"weight_decay": 0.1, "momentum_decay": 0.1, "maximize": True, "eps": 1e-3},
    ),
    "nadam-decoupled": ("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    "asgd": ("ASGD", {}),
    "asgd-averaging": (
        "ASGD",
        {"lr": 0.1, "lambd": 0.1, "t0": 2.0, "alpha": 0.5, "weight_decay": 0.1, "maximize": True},
    ),
}

CASES = [
    Case("adamw", fusedstep.optim.AdamW, torch.optim.AdamW, {"lr": 0.05}),
    Case(
        "adamw-decay-maximize",
        fusedstep.optim.AdamW,
        torch.optim.AdamW,
        {"lr": 0.02, "weight_decay": 0.3, "maximize": True, "betas": (0.5, 0.7), "eps": 1e-3},
    ),
    Case(
        "adamw-amsgrad",
        fusedstep.optim.AdamW,
        torch.optim.AdamW,
        {"lr": 0.05, "weight_decay": 0.1, "amsgrad": True, "betas": (0.8, 0.6)},
    ),
    Case("old-adamw", fusedstep.hf.AdamW, OldAdamW, {"lr": 0.05, "weight_decay": 0.2}, QUIET),
    Case(
        "old-adamw-uncorrected",
        fusedstep.hf.AdamW,
        OldAdamW,
        {"lr": 0.01, "correct_bias": False, "eps": 1e-2},
        QUIET,
    ),
    Case(
        "old-adam-weight-decay",
        AdamWeightDecay,
        OldAdamWeightDecay,
        {"lr": 0.05, "weight_decay": 0.2},
    ),
    Case("adafactor", fusedstep.optim.Adafactor, torch.optim.Adafactor, {}),
    Case(
        "adafactor-decay-maximize",
        fusedstep.optim.Adafactor,
        torch.optim.Adafactor,
        {"lr": 0.3, "weight_decay": 0.2, "maximize": True, "d": 2.0, "beta2_decay": -0.5},
    ),
    # Factors above 1/eps1 are capped: every element, some, none.
    Case(
        "adafactor-capped", fusedstep.optim.Adafactor, torch.optim.Adafactor, {"eps": (0.1, 1e-2)}
    ),
    Case(
        "adafactor-part-capped",
        fusedstep.optim.Adafactor,
        torch.optim.Adafactor,
        {"eps": (8e-3, 1e-3)},
    ),
    Case("hf-adafactor", HF, HF_PEER, {}),
    Case("hf-adafactor-warmup", HF, HF_PEER, {"warmup_init": True, "weight_decay": 0.3}),
    Case("hf-adafactor-trainer", HF, HF_PEER, {"lr": 0.05, "weight_decay": 0.2, **FIXED}),
    Case(
        "hf-adafactor-scaled",
        HF,
        HF_PEER,
        {"lr": 0.3, "relative_step": False, "weight_decay": 0.1, "clip_threshold": 0.5},
    ),
    Case("hf-adafactor-momentum", HF, HF_PEER, {"beta1": 0.9, "weight_decay": 0.1}),
    Case("hf-adafactor-momentum-zero", HF, HF_PEER, {"lr": 0.02, "beta1": 0.0, **FIXED}),
    Case("lion", fusedstep.optim.Lion, Lion, {"lr": 0.01}),
    Case(
        "lion-decay",
        fusedstep.optim.Lion,
        Lion,
        {"lr": 0.01, "weight_decay": 0.5, "betas": (0.5, 0.8), "maximize": True},
    ),
    *(
        Case(name, getattr(fusedstep.optim, own), getattr(torch.optim, own), options)
        for name, (own, options) in OF_TORCH.items()
        # Adam's `decoupled_weight_decay` came with torch 2.7.
        if options.keys() <= inspect.signature(getattr(torch.optim, own)).parameters.keys()
    ),
]

# Empty tensors, a scalar, vectors, matrices with one row or column, matrices of one block or tile
# and of several, batches of small matrices of one piece and of several, a batch of large matrices.
SHAPES = [
    (),
    (1,),
    (0,),
    (7,),
    (1025,),
    (70001,),
    (1, 1),
    (5, 0, 3),
    (1, 300),
    (300, 1),
    (64, 64),
    (33, 17),
    (9, 1030),
    (261, 259),
    (600, 120),
    (3, 5, 7),
    (4, 3, 3, 3),
    (9000, 3, 3),
    (2, 270, 260),
    (1, 70000),
]

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def make_params(
    shapes: list[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Params:
    """Parameters around 1. Every dtype gets the same numbers, which are rounded to bfloat16."""
    numbers = _random(shapes, seed)
    return [torch.nn.Parameter(x.to(dtype, copy=True)) for x in numbers]


def _random(shapes: Iterable[Sequence[int]], seed: int, scale: float = 1.0) -> list[Tensor]:
    """Do not write them: the same numbers are given again."""
    kept = tuple(map(tuple, shapes))
    make = _made if sum(map(math.prod, kept)) < 2_000_000 else _made.__wrapped__
    return make(kept, seed, scale)


@functools.lru_cache(maxsize=100)  # most tests take the same few seeds
def _made(shapes: tuple[tuple[int, ...], ...], seed: int, scale: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    numbers = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [(x * scale).to(torch.bfloat16) for x in numbers]


def set_grads(params: Params, seed: int, scale: float = 0.01) -> None:
    """Gradients with zero rows and zero columns. Every dtype gets the same numbers."""
    numbers = _random([param.shape for param in params], 1000 + seed, scale)
    for param, number in zip(params, numbers, strict=True):
        grad = number.to(param.dtype, copy=True)
        if grad.dim() >= 2 and min(grad.shape[-2:]) > 2:
            grad[..., 1, :] = 0
            grad[..., 2] = 0
        param.grad = grad


# The states that are one number for a parameter.
NUMBERS = ("step", "RMS", "mu_product", "eta", "mu")


def states(optimizer: torch.optim.Optimizer, param: Tensor) -> dict[str, Any]:
    """A parameter's state. Numbers become tensors."""
    state = optimizer.state.get(param, {})  # a lookup by [] would make one
    return {key: torch.as_tensor(value) for key, value in state.items()}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether dtypes and numbers are equal. All nans count as equal."""
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and bool(((a == b) | (a.isnan() & b.isnan())).all())
    )


def assert_same(
    a: torch.optim.Optimizer, a_params: Params, b: torch.optim.Optimizer, b_params: Params
) -> None:
    """Asserts that parameters and all states have the same bits."""
    for index, (p, q) in enumerate(zip(a_params, b_params, strict=True)):
        where = f"parameter {index} {tuple(p.shape)} {p.dtype}"
        assert same_bits(p, q), f"{where}: differs by {(p - q).abs().max()}"
        own, other = states(a, p), states(b, q)
        assert own.keys() == other.keys(), where
        for key in own:
            assert same_bits(own[key], other[key]), f"{where}: state {key}"


def each(cases: list[Case]) -> Callable[[Any], Any]:
    import pytest

    return pytest.mark.parametrize("case", cases, ids=str)
