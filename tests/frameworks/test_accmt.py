"""accmt's own Trainer over our optimizers and schedules: `make test-accmt` installs it beside a
transformers that it can import."""

import math
import os
from pathlib import Path

import pytest
import torch

os.environ["ACCMT_CPU"] = "1"  # read at import
accmt = pytest.importorskip("accmt", exc_type=ImportError)

from accmt.hyperparameters import Optimizer, Scheduler  # noqa: E402

import fusedstep  # noqa: E402
import fusedstep.config  # noqa: E402
from fusedstep.optim.base import FusedOptimizer  # noqa: E402

STEPS, EPOCHS = 4, 2
OPTIMIZERS = [name for name, kind in vars(Optimizer).items() if isinstance(kind, type)]
# What accmt's schedules need besides what it gives them.
SCHEDULERS = {
    "StepLR": "step_size: 2",
    "LinearLR": "",
    "ExponentialLR": "gamma: 0.9",
    "CosineAnnealingLR": "T_max: 8",
    "CyclicLR": "base_lr: 1e-3, max_lr: 1e-2, cycle_momentum: false",
    "OneCycleLR": "max_lr: 1e-2",
    "CosineAnnealingWarmRestarts": "T_0: 4",
    "Constant": "",
    "CosineWithWarmup": "warmup_ratio: 0.25",
    "ConstantWithWarmup": "num_warmup_steps: 0.25",
    "CosineWithHardRestartsWithWarmup": "warmup_ratio: 0.25, num_cycles: 2",
    "InverseSQRT": "warmup_ratio: 0.25",
    "LinearWithWarmup": "warmup_ratio: 0.25",
    "PolynomialDecayWithWarmup": "warmup_ratio: 0.25, power: 2.0",
}
# Settings besides a learning rate of 0.01.
SETTINGS = {"Adafactor": "{type: Adafactor}"}


class Pairs(torch.utils.data.Dataset):
    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(4 * STEPS, 6, generator=generator)
        self.y = torch.randn(4 * STEPS, 3, generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index]


class Module(accmt.AcceleratorModule):
    def __init__(self, stop_at=None):
        torch.manual_seed(1)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
        )
        self.rates, self.stop_at = [], stop_at

    def training_step(self, batch):
        if self.stop_at is not None and len(self.rates) == self.stop_at:
            raise KeyboardInterrupt
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        x, y = batch
        return torch.nn.functional.mse_loss(self.model(x), y)

    def validation_step(self, key, batch):
        x, y = batch
        return {"loss": torch.nn.functional.mse_loss(self.model(x), y)}


class Sparse(Module):
    """A model whose gradients are sparse, which SparseAdam needs."""

    def __init__(self):
        super().__init__()
        self.model = torch.nn.Embedding(16, 3, sparse=True)

    def training_step(self, batch):
        x, y = batch
        return super().training_step(((x[:, 0] * 100).long() % 16, y))


def fit(folder, yaml, module=None, **options):
    """Trains by a YAML file. Returns the module, and the trainer."""
    # accmt has one Accelerator, which a run that ended early has left full.
    accmt.accelerator.free_memory()
    accmt.accelerator._custom_objects.clear()
    folder.mkdir(exist_ok=True)
    file = folder / "hps.yaml"
    file.write_text("hps:\n" + "".join(f"  {line}\n" for line in yaml))
    settings = {
        "enable_checkpointing": False, "disable_model_saving": True, "shuffle_train": False,
        "destroy_after_training": False, "dataloader_pin_memory": False, **options,
    }  # fmt: skip
    trainer = accmt.Trainer(str(file), str(folder / "model"), **settings)
    module = module or Module()
    trainer.fit(module, Pairs())
    return module, trainer


def run(**parts):
    return ["batch_size: 4", f"epochs: {EPOCHS}", *(f"{k}: {v}" for k, v in parts.items())]


def params(module):
    return [param.detach().clone() for param in module.model.parameters()]


@pytest.fixture
def registered():
    fusedstep.register(accmt=True)
    yield
    fusedstep.unregister()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_yaml_with_any_optimizer_trains_with_ours_as_it_did(tmp_path, name):
    make, options = (Sparse, {"clip_grad": None}) if name == "SparseAdam" else (Module, {})
    yaml = run(optimizer=SETTINGS.get(name, f"{{type: {name}, lr: 1e-2}}"))
    theirs, _ = fit(tmp_path / "theirs", yaml, make(), **options)
    peer = getattr(Optimizer, name)
    fusedstep.register(accmt=True)
    try:
        ours, trainer = fit(tmp_path / "ours", yaml, make(), **options)
        kind = type(trainer._optimizer.optimizer)  # inside accelerate's wrapper
        assert getattr(Optimizer, name) is kind
    finally:
        fusedstep.unregister()
    assert getattr(Optimizer, name) is peer
    assert kind.__module__.startswith("fusedstep.") and hasattr(fusedstep.optim, name)
    assert kind.__name__ == peer.__name__
    for p, q in zip(params(ours), params(theirs), strict=True):
        torch.testing.assert_close(p, q, rtol=0.0, atol=1e-6)  # eight steps' roundings
    assert any(not torch.equal(p, q) for p, q in zip(params(ours), params(make()), strict=True))


def test_these_are_accmts_optimizers_and_schedulers():
    makers = {k for k in vars(Scheduler) if k[0].isupper()}
    assert len(OPTIMIZERS) == 13 and makers == set(SCHEDULERS) and len(makers) == 14


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_yaml_with_any_scheduler_has_the_same_rates(tmp_path, name):
    settings = ", ".join(filter(None, [f"type: {name}", SCHEDULERS[name]]))
    yaml = run(optimizer="{type: AdamW, lr: 1e-2}", scheduler=f"{{{settings}}}")
    theirs, _ = fit(tmp_path / "theirs", yaml)
    fusedstep.register(accmt=True)
    try:
        ours, trainer = fit(tmp_path / "ours", yaml)
    finally:
        fusedstep.unregister()
    assert ours.rates == theirs.rates and len(ours.rates) == STEPS * EPOCHS
    kind = type(trainer._scheduler.scheduler).__module__
    assert kind.startswith("torch." if hasattr(torch.optim.lr_scheduler, name) else "fusedstep.")


def linear(warmup, total):
    """The rates of a linear schedule from 0.01."""
    return [
        0.01 * (s / warmup if s < warmup else (total - s) / (total - warmup)) for s in range(total)
    ]


def test_a_schedule_is_as_long_as_the_training_once_repaired(tmp_path):
    yaml = run(
        optimizer="{type: AdamW, lr: 1e-2}",
        scheduler="{type: LinearWithWarmup, warmup_ratio: 0.25}",
    )
    total = STEPS * EPOCHS
    unrepaired, _ = fit(tmp_path / "before", yaml)
    fusedstep.register(accmt=True, repair_epochs=True)
    try:
        repaired, trainer = fit(tmp_path / "repaired", yaml)
        config = fusedstep.config.build(str(tmp_path / "repaired" / "hps.yaml"), Module().model, 4)
    finally:
        fusedstep.unregister()
    again, _ = fit(tmp_path / "again", yaml)
    assert unrepaired.rates == pytest.approx(linear(EPOCHS * total // 4, EPOCHS * total)[:total])
    assert again.rates == unrepaired.rates
    assert repaired.rates == pytest.approx(linear(total // 4, total))
    assert trainer._scheduler.get_last_lr() == [0.0]
    optimizer, schedule = config
    for rate in repaired.rates:
        assert schedule.get_last_lr() == [rate]
        optimizer.step()
        schedule.step()


def test_a_schedule_that_counts_epochs_is_repaired_too(tmp_path):
    hps = accmt.HyperParameters(
        epochs=3, batch_size=4, optimizer="AdamW", optim_kwargs={"lr": 1e-2},
        scheduler="LinearWithWarmup", scheduler_kwargs={"num_warmup_steps": 0},
        step_scheduler_per_epoch=True,
    )  # fmt: skip
    fusedstep.register(accmt=True, repair_epochs=True)
    try:
        trainer = accmt.Trainer(
            hps, str(tmp_path), enable_checkpointing=False, disable_model_saving=True,
            destroy_after_training=False, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer.fit(module := Module(), Pairs())
    finally:
        fusedstep.unregister()
    expected = [0.01 * (3 - epoch) / 3 for epoch in range(3)]
    assert module.rates == pytest.approx([lr for lr in expected for _ in range(STEPS)])


@pytest.mark.parametrize("name", ["AdamW", "Adafactor"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path, registered, name):
    yaml = run(
        optimizer=SETTINGS.get(name, f"{{type: {name}, lr: 1e-2}}"),
        **({} if name == "Adafactor" else {"scheduler": "{type: Constant}"}),
    )
    saving = {"enable_checkpointing": True, "checkpoint_every": "epoch"}
    whole, _ = fit(tmp_path / "whole", yaml, **saving)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "half", yaml, Module(stop_at=STEPS + 1), **saving)
    later, trainer = fit(tmp_path / "half", yaml, resume=True, **saving)
    assert len(later.rates) == STEPS and isinstance(trainer._optimizer.optimizer, FusedOptimizer)
    assert all(map(torch.equal, params(whole), params(later)))


def test_a_search_of_hyperparameters_trains_with_ours(tmp_path, registered, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    kinds = []

    class Watched(Module):
        def training_step(self, batch):
            kinds.append(type(self.optimizer.optimizer))
            return super().training_step(batch)

    search = accmt.HyperParameterSearch(Watched, Pairs(), Pairs())
    search.set_parameters(
        train_batch_size=4, epochs=1, learning_rate=[1e-3, 1e-2], scheduler=Scheduler.Constant
    )
    search.optimize(n_trials=2)
    assert len(kinds) == 2 * STEPS and set(kinds) == {fusedstep.optim.AdamW}
    best = capsys.readouterr().out.split("Best value: ")[1].split()[0]
    assert math.isfinite(float(best))


def test_our_config_reads_what_accmt_reads(tmp_path):
    yaml = run(
        optimizer="{type: AdamW, lr: 1e-3, weight_decay: 0.1}",
        scheduler="{type: CosineWithWarmup, warmup_ratio: 0.5}",
    )
    file = Path(tmp_path / "hps.yaml")
    file.write_text("hps:\n" + "".join(f"  {line}\n" for line in yaml))
    theirs = accmt.HyperParameters.from_config(str(file))
    ours = fusedstep.config.HyperParameters.from_config(file)
    # accmt writes the name of a function there, which it cannot read.
    assert ours.get_config() == {**theirs.get_config(), "scheduler": "CosineWithWarmup"}
    assert ours.to_dict()["hps"].keys() == theirs.to_dict()["hps"].keys()
    for key in ("epochs", "max_steps", "batch_size", "optim_kwargs", "scheduler_kwargs"):
        assert ours[key] == theirs[key]
