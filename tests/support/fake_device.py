"""Fake devices: CPU tensors that count as on a device, or meta tensors, which have no numbers. Also
the fixtures for them, and optimizers with their counters there."""

import inspect

import pytest
import torch

import fusedstep.hf
import fusedstep.optim
from fusedstep import backends, check
from fusedstep.plan import devices, plan
from fusedstep.plan.launcher import Backend, Launcher
from fusedstep.plan.watch import PythonWatch
from tests.support.cases import make_params, set_grads

SHAPES = [(), (7,), (1025,), (1, 9), (33, 17), (3, 5, 7), (0,), (300, 260)]
OPTIM = fusedstep.optim
ADAMW, ADAFACTOR, OLD_ADAMW = fusedstep.optim.AdamW, fusedstep.optim.Adafactor, fusedstep.hf.AdamW


def tensor(x):
    return torch.tensor(x, dtype=torch.float64)


def tensor_betas():
    return {"lr": tensor(0.02), "betas": (tensor(0.8), tensor(0.95)), "capturable": True}


# Functions that make the options, since each optimizer needs its own tensors.
OPTIONS = {
    "adamw": (ADAMW, lambda: {"lr": 0.05, "capturable": True}),
    "adamw-fused": (ADAMW, lambda: {"lr": 0.05, "fused": True, "weight_decay": 0.1}),
    "adamw-amsgrad": (ADAMW, lambda: {"amsgrad": True, "betas": (0.8, 0.6), "capturable": True}),
    "adamw-maximize": (ADAMW, lambda: {"maximize": True, "eps": 1e-3, "capturable": True}),
    "adamw-tensor-lr": (ADAMW, lambda: {"lr": tensor(0.05), "capturable": True}),
    "adamw-tensor-betas": (ADAMW, tensor_betas),
    "adamw-only-lr": (ADAMW, lambda: {"lr": tensor(0.05)}),
    "adafactor": (ADAFACTOR, lambda: {"capturable": True}),
    "adafactor-maximize": (
        ADAFACTOR,
        lambda: {"lr": 0.3, "weight_decay": 0.2, "maximize": True, "d": 2.0, "capturable": True},
    ),
    "adafactor-capped": (ADAFACTOR, lambda: {"eps": (8e-3, 1e-3), "capturable": True}),
    "adafactor-tensor-lr": (
        ADAFACTOR,
        lambda: {"lr": tensor(0.4), "beta2_decay": -0.5, "capturable": True},
    ),
    "adam-decay": (OPTIM.Adam, lambda: {"weight_decay": 0.1, "capturable": True}),
    "lion": (OPTIM.Lion, lambda: {"lr": 0.01, "weight_decay": 0.5, "capturable": True}),
    "rmsprop": (OPTIM.RMSprop, lambda: {"centered": True, "momentum": 0.5, "capturable": True}),
    "adagrad-fused": (OPTIM.Adagrad, lambda: {"lr_decay": 0.1, "fused": True}),
    "adadelta": (OPTIM.Adadelta, lambda: {"capturable": True}),
    "adamax": (OPTIM.Adamax, lambda: {"weight_decay": 0.1, "capturable": True}),
    "radam": (OPTIM.RAdam, lambda: {"betas": (0.9, 0.99), "capturable": True}),
    "sgd": (OPTIM.SGD, lambda: {"lr": tensor(0.05), "momentum": 0.9, "dampening": 0.3}),
    "rprop": (OPTIM.Rprop, lambda: {"lr": tensor(0.01), "capturable": True}),
    "nadam": (OPTIM.NAdam, lambda: {"momentum_decay": 0.1, "capturable": True}),
    "asgd": (
        OPTIM.ASGD,
        lambda: {"lr": tensor(0.05), "lambd": 0.1, "t0": 2.0, "capturable": True},
    ),
    "old-adamw-lr": (
        OLD_ADAMW,
        lambda: {"lr": tensor(0.05), "weight_decay": 0.2, "no_deprecation_warning": True},
    ),
    "old-adam-weight-decay-lr": (
        fusedstep.hf.AdamWeightDecay,
        lambda: {"lr": tensor(0.05), "weight_decay": 0.2, "decay": 0.5, "amsgrad": True},
    ),
}
each_option = pytest.mark.parametrize("name", OPTIONS)
each_torch = pytest.mark.parametrize("name", [n for n in OPTIONS if not n.startswith("old")])


class Recorder(Backend):
    """A backend that only remembers its launches."""

    name = "recorder"

    def __init__(self):
        self.launched = []
        self.rows = []  # of each launch: a row for each member with a gradient

    def why_absent(self):
        return ""

    def devices(self):
        return ("cpu", "meta")

    def describe(self):
        return "remembers"

    def prepare(self, bucket):
        return RecordingLauncher(self, bucket)


class RecordingLauncher(Launcher):
    def scratch_bytes(self):
        return 0

    def launch(self, inputs):
        self.backend.launched.append((self.bucket, inputs.scalars))
        if inputs.scalars.device.type == "cpu":
            present = [member.is_present for member in self.bucket.members]
            self.backend.rows.append(inputs.scalars[self.bucket.rows.scalar_row_of[present]])

    read1 = finish = update = launch


@pytest.fixture
def recorder(monkeypatch):
    made = Recorder()
    monkeypatch.setitem(backends.BACKENDS, made.name, made)
    return made


@pytest.fixture
def on_device(monkeypatch):
    """Lets all tensors, or those in `only`, count as on a device. `on_device(False)` ends it."""

    def switch(on=True, only=None):
        on_host = REAL_ON_HOST if not on else lambda t: only and not any(t is x for x in only)
        monkeypatch.setattr(devices, "on_host", on_host)

    return switch


REAL_ON_HOST = devices.on_host


@pytest.fixture
def meta(monkeypatch, recorder):
    """Lets meta tensors count as tensors on a device."""
    monkeypatch.setattr(check, "check_tensors", lambda *_: None)
    monkeypatch.setattr(plan, "watch", PythonWatch)


@pytest.fixture
def meta_reference(monkeypatch, meta):
    monkeypatch.setattr(backends.ReferenceBackend, "devices", lambda self: ("cpu", "meta"))


@pytest.fixture
def capturing(monkeypatch):
    """A set of device types whose streams count as captured."""
    types = set()
    monkeypatch.setattr(devices, "is_capturing", lambda device: device.type in types)
    return types


def make(name, params, backend="reference", capturable=True):
    """An optimizer with three groups of different options. Without `capturable` its counters are on
    the host, as the peer's are."""
    kind, options = OPTIONS[name]
    values = options()
    if not capturable:
        values |= {key: False for key in ("capturable", "fused") if key in values}
    groups = [
        {"params": params[::3]},
        {"params": params[1::3], "weight_decay": 0.3},
        {"params": params[2::3], "lr": tensor(0.01)},
    ]
    return kind([g for g in groups if g["params"]], **values, backend=backend)


def run(optimizer, params, rounds, scaled=False, first=0):
    """Takes steps, in each of which another parameter has no gradient. One step finds an
    infinity."""
    for step in range(first, first + rounds):
        set_grads(params, step, scale=8.0 if scaled else 1.0)
        if step in (1, 2):
            params[step].grad = None
        if scaled:
            optimizer.grad_scale = torch.tensor(8.0)
            optimizer.found_inf = torch.tensor(1.0 if step == 3 else 0.0)
        optimizer.step()


def on_both_ways(name, shapes, dtype, on_device, rounds=5, scaled=False):
    runs = []
    for far in (False, True):
        on_device(far)
        params = make_params(shapes, dtype)
        optimizer = make(name, params, capturable=far)
        run(optimizer, params, rounds, scaled)
        runs.append((optimizer, params))
    return runs


def to_meta(params):
    made = [torch.nn.Parameter(torch.empty_like(p, device="meta")) for p in params]
    for param in made:
        param.grad = torch.empty_like(param)
    return made


@pytest.fixture
def ready(meta, recorder, capturing):
    """An optimizer on a device after its first step. Gradients stay in place."""

    def build(steps_before=1, kind=ADAMW, **options):
        params = to_meta(make_params([(3,), (4, 5)]))
        if "capturable" in inspect.signature(kind).parameters:
            options = {"capturable": True, **options}
        options = {**options, "backend": "recorder"}
        optimizer = kind(list(zip(("fc.bias", "fc.weight"), params, strict=True)), **options)
        for _ in range(steps_before):
            optimizer.step()
        return optimizer, params

    return build
