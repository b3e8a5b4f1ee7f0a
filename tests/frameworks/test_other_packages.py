"""The rows of docs/migrate.md on other packages: theirs and ours take the same steps."""

import copy
import importlib
import re
from pathlib import Path

import pytest
import torch

from fusedstep.hf import Adafactor
from fusedstep.hf import AdamW as DecaysLast
from fusedstep.optim import SGD, Adagrad, Adam, AdamW, Lion, RAdam, RMSprop

PAGE = (Path(__file__).parents[2] / "docs" / "migrate.md").read_text()
CLOSE = 2e-6  # as the page says
PLAIN = {"quantize": False, "master_weight_bits": None, "fused": False}
OPTIMI, APART = {"betas": (0.9, 0.99), "eps": 1e-6}, {"decouple_wd": True}
FIXED = {"scale_parameter": False, "relative_step": False}
DECAY = {"weight_decay": 0.1}
MOMENTUM = {"momentum": 0.9}

# By module: their class and settings, then ours.
ROWS = {
    "bitsandbytes.optim": [
        ("AdamW", {"lr": 0.01}, AdamW, {"lr": 0.01}),
        ("AdamW", {"lr": 0.01, "amsgrad": True}, AdamW, {"lr": 0.01}),
        ("Adam", {"lr": 0.01, **DECAY}, AdamW, {"lr": 0.01, **DECAY}),
        ("Lion", {"lr": 1e-3, **DECAY}, Lion, {"lr": 1e-3, **DECAY}),
        ("SGD", {"lr": 0.01, **MOMENTUM}, SGD, {"lr": 0.01, **MOMENTUM}),
        ("SGD", {"lr": 0.01, **MOMENTUM, "nesterov": True}, SGD, {"lr": 0.01, **MOMENTUM}),
        ("RMSprop", {"lr": 0.01, **MOMENTUM, **DECAY}, RMSprop, {"lr": 0.01, **DECAY}),
        ("Adagrad", {"lr": 0.01, **DECAY}, Adagrad, {"lr": 0.01, **DECAY}),
    ],
    "torchao.optim": [  # it keeps float32 states of tensors this small
        ("AdamW8bit", {"lr": 0.01}, AdamW, {"lr": 0.01}),
        ("Adam8bit", {"lr": 0.01, **DECAY}, Adam, {"lr": 0.01, **DECAY}),
    ],
    "deepspeed.ops.adam": [
        ("DeepSpeedCPUAdam", {"lr": 0.01}, AdamW, {"lr": 0.01, "weight_decay": 0.0}),
        ("DeepSpeedCPUAdam", {"lr": 0.01, **DECAY}, AdamW, {"lr": 0.01, **DECAY}),
        ("DeepSpeedCPUAdam", {"adamw_mode": False, **DECAY}, Adam, DECAY),
        (
            "DeepSpeedCPUAdam",
            {"bias_correction": False},
            DecaysLast,
            {"eps": 1e-8, "correct_bias": False, "no_deprecation_warning": True},
        ),
    ],
    "deepspeed.ops.lion": [
        ("DeepSpeedCPULion", DECAY, Lion, {"lr": 1e-3, "betas": (0.9, 0.999), **DECAY}),
    ],
    "optimi": [
        ("AdamW", {"lr": 0.01}, AdamW, {"lr": 0.01, **OPTIMI}),
        ("Adam", {"lr": 0.01, **DECAY}, Adam, {"lr": 0.01, **OPTIMI, **DECAY}),
        ("Adam", {"lr": 0.01, **DECAY, **APART}, AdamW, {"lr": 0.01, **OPTIMI, **DECAY}),
        (
            "RAdam",
            {"lr": 0.01, **DECAY, **APART},
            RAdam,
            {"lr": 0.01, **OPTIMI, **DECAY, "decoupled_weight_decay": True},
        ),
        ("Lion", {"lr": 1e-3, **DECAY}, Lion, {"lr": 1e-3, **DECAY}),
        ("SGD", {"lr": 0.01, **MOMENTUM, **DECAY}, SGD, {"lr": 0.01, **MOMENTUM, **DECAY}),
    ],
    "flashoptim": [
        ("FlashAdamW", {**PLAIN, **DECAY}, AdamW, DECAY),
        ("FlashAdam", {**PLAIN, **DECAY}, Adam, DECAY),
        ("FlashLion", {**PLAIN, **DECAY}, Lion, {"lr": 1e-3, **DECAY}),
        ("FlashSGD", {**PLAIN, **MOMENTUM, **DECAY}, SGD, {**MOMENTUM, **DECAY}),
    ],
    "pytorch_optimizer": [
        ("AdaFactor", {"lr": None, "betas": (None, 0.999), **DECAY}, Adafactor, DECAY),
        ("AdaFactor", {"lr": None, "momentum_dtype": torch.float32}, Adafactor, {"beta1": 0.9}),
        ("AdaFactor", {"betas": (None, 0.999), **FIXED}, Adafactor, {"lr": 1e-3, **FIXED}),
        ("Lion", DECAY, Lion, DECAY),
        ("AdamW", {}, AdamW, {}),
    ],
    "adafactor8bit": [
        ("Adafactor8Bit", {"quantize": False}, Adafactor, {}),
        ("Adafactor8Bit", {"quantize": False, **FIXED}, Adafactor, {"lr": 0.01, **FIXED}),
    ],
}  # fmt: skip


def make_params():
    generator = torch.Generator().manual_seed(0)
    shapes = ((32, 16), (16,))
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def train(optimizer, params, seed, steps=5):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for param in params:
            param.grad = 0.1 * torch.randn(param.shape, generator=generator)
        optimizer.step()


def apart(params, others):
    return max(float((p - q).abs().max().detach()) for p, q in zip(params, others, strict=True))


def imported(module):
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"not installed, see make test-peers: {package}")
    return importlib.import_module(module)


SLOW = {"deepspeed": pytest.mark.slow}  # it builds its kernels at the first step
MODULES = [pytest.param(name, marks=SLOW.get(name.partition(".")[0], ())) for name in ROWS]


@pytest.mark.parametrize("module", MODULES)
def test_their_steps_are_ours(module):
    found = imported(module)
    for name, settings, kind, own_settings in ROWS[module]:
        assert name in PAGE
        params, others = make_params(), make_params()
        train(getattr(found, name)(params, **settings), params, seed=1)
        train(kind(others, **own_settings), others, seed=1)
        assert apart(params, others) <= CLOSE, (name, settings)


# Their class and settings, ours, and the names of their states.
TAKEN_OVER = {
    "deepspeed.ops.adam": ("DeepSpeedCPUAdam", DECAY, AdamW, DECAY, {}),
    "flashoptim": ("FlashAdamW", {**PLAIN, "compress_state_dict": False}, AdamW, {}, {}),
    "pytorch_optimizer": ("AdaFactor", {"lr": None, "betas": (None, 0.999)}, Adafactor, {}, {}),
    "bitsandbytes.optim": ("AdamW", {}, AdamW, {}, {"state1": "exp_avg", "state2": "exp_avg_sq"}),
}


@pytest.mark.parametrize(
    "module", [own for own in MODULES if own.values[0] in TAKEN_OVER], ids=list(TAKEN_OVER)
)
def test_their_checkpoints_are_taken_over(module):
    found = imported(module)
    name, settings, kind, own_settings, renamed = TAKEN_OVER[module]
    names = {}
    exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], names)
    params = make_params()
    theirs = getattr(found, name)(params, **settings)
    train(theirs, params, seed=1)
    others = [torch.nn.Parameter(param.detach().clone()) for param in params]
    ours = kind(others, **own_settings)
    saved = copy.deepcopy(theirs.state_dict())
    for state in saved["state"].values():
        state.update(state.pop("__bnb_optimizer_quant_state__", {}))
    ours.load_state_dict(names["taken_over"](saved, ours, renamed))
    train(theirs, params, seed=2, steps=3)
    train(ours, others, seed=2, steps=3)
    assert apart(params, others) <= CLOSE
