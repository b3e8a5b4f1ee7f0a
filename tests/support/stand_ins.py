"""Small modules in the place of accmt and timm, with the hooks that `fusedstep.register` uses. The
real ones are tested by `make test-accmt` and `make test-frameworks`."""

import dataclasses
import sys
from types import ModuleType

import torch
import transformers.optimization as peer


def accmt():
    """accmt: two classes of names, and a Trainer that counts epochs twice."""
    names, trainer = ModuleType("accmt.hyperparameters"), ModuleType("accmt.trainer")

    class Optimizer:
        SGD = torch.optim.SGD
        AdamW = torch.optim.AdamW
        Adafactor = peer.Adafactor
        LBFGS = torch.optim.LBFGS  # which fusedstep has not

    class Scheduler:
        StepLR = torch.optim.lr_scheduler.StepLR
        Constant = peer.get_constant_schedule
        LinearWithWarmup = peer.get_linear_schedule_with_warmup

    class Trainer:
        def _get_scheduler(self, module, optimizer, num_training_steps, num_epochs):
            total = num_training_steps * num_epochs
            return module.get_scheduler(optimizer, num_training_steps, num_epochs) or total

    names.Optimizer, names.Scheduler, trainer.Trainer = Optimizer, Scheduler, Trainer
    return {"accmt": ModuleType("accmt"), "accmt.hyperparameters": names, "accmt.trainer": trainer}


def timm():
    """timm: a registry that keeps what follows the last underscore of a name."""
    factory = ModuleType("timm.optim._optim_factory")

    @dataclasses.dataclass(frozen=True)
    class OptimInfo:
        name: str
        opt_class: type
        description: str = ""
        has_eps: bool = True
        has_momentum: bool = False
        has_betas: bool = False
        defaults: dict | None = None

    class Registry:
        def __init__(self):
            entries = [
                OptimInfo("adamw", torch.optim.AdamW, has_betas=True),
                OptimInfo("amsgrad", torch.optim.AdamW, defaults={"amsgrad": True}),
                OptimInfo("lbfgs", torch.optim.LBFGS, has_eps=False),
            ]
            self._optimizers = {entry.name: entry for entry in entries}

        def create_optimizer(self, model_or_params, opt, **kwargs):
            info = self._optimizers[opt.lower().split("_")[-1]]
            return info.opt_class(model_or_params.parameters(), **(info.defaults or {}), **kwargs)

    factory.OptimInfo, factory.default_registry = OptimInfo, Registry()
    packages = {name: ModuleType(name) for name in ("timm", "timm.optim")}
    return {**packages, "timm.optim._optim_factory": factory}


def install(monkeypatch, modules):
    """Puts the modules where an import finds them. Returns the last one."""
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return module
