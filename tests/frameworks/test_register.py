"""fusedstep.register: ours under other frameworks' names, and everything back afterwards."""

import subprocess
import sys

import pytest
import torch
import transformers

import fusedstep
import fusedstep.hf
import fusedstep.optim
from fusedstep.optim.base import FusedOptimizer
from fusedstep.optim.mirrored import mirrored
from fusedstep.schedules import Schedule, get_linear_schedule_with_warmup
from tests.support import stand_ins

TRAINER = transformers.Trainer
MIRRORED = {
    "adafactor": fusedstep.hf.Adafactor,
    "adamw_torch": fusedstep.optim.AdamW,
    "adamw_torch_fused": fusedstep.optim.AdamW,
}


@pytest.fixture(autouse=True)
def nothing_stays():
    before = dict(vars(TRAINER)), dict(vars(transformers.trainer))
    yield
    fusedstep.unregister()
    assert (dict(vars(TRAINER)), dict(vars(transformers.trainer))) == before


def arguments(folder, **more):
    return transformers.TrainingArguments(
        output_dir=str(folder), max_steps=3, per_device_train_batch_size=4, learning_rate=0.01,
        report_to=[], disable_tqdm=True, use_cpu=True, save_strategy="no", weight_decay=0.1, **more,
    )  # fmt: skip


def model():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=8, n_embd=16, n_layer=1, n_head=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def train(args, **more):
    tokens = torch.randint(0, 32, (12, 8), generator=torch.Generator().manual_seed(1))
    data = [{"input_ids": row, "labels": row} for row in tokens]
    trainer = TRAINER(model(), args, train_dataset=data, **more)
    trainer.train()
    # A key's bias adds the same to all scores of a query, so its gradient is rounding noise.
    named = trainer.model.named_parameters()
    return trainer, [param.detach() for name, param in named if "c_attn.bias" not in name]


@pytest.mark.parametrize("name", [*MIRRORED, "sgd", "adagrad", "rmsprop"])
def test_the_trainer_makes_ours_for_exactly_what_we_mirror(tmp_path, name):
    args = arguments(tmp_path, optim=name)
    kind, settings = TRAINER.get_optimizer_cls_and_kwargs(args)
    fusedstep.register(transformers=True)
    found, same = transformers.Seq2SeqTrainer.get_optimizer_cls_and_kwargs(args)
    assert same == settings
    expected = MIRRORED.get(name) or getattr(fusedstep.optim, kind.__name__, kind)
    assert found is expected
    fusedstep.unregister()
    assert TRAINER.get_optimizer_cls_and_kwargs(args)[0] is kind


def test_a_script_with_the_name_trains_as_one_with_the_class(tmp_path):
    args = arguments(tmp_path, optim="adafactor", lr_scheduler_type="cosine", warmup_steps=1)
    _, theirs = train(args)
    with_class, same = train(
        args, optimizer_cls_and_kwargs=fusedstep.hf.optimizer_cls_and_kwargs(args)
    )
    assert type(with_class.optimizer.optimizer) is fusedstep.hf.Adafactor
    fusedstep.register(transformers=True)
    trainer, ours = train(args)
    assert type(trainer.optimizer.optimizer) is fusedstep.hf.Adafactor
    assert len(trainer.optimizer.param_groups) == 2
    assert type(trainer.lr_scheduler).__module__.startswith("fusedstep.")
    assert all(map(torch.equal, ours, same))
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=0.0, atol=1e-6)  # roundings of three steps


def test_a_schedule_that_we_lack_stays_transformers(monkeypatch):
    monkeypatch.setattr(transformers.trainer, "get_scheduler", lambda name, *args: ("theirs", name))
    fusedstep.register(transformers=True)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    make = transformers.trainer.get_scheduler
    assert make("quadratic", optimizer) == ("theirs", "quadratic")
    for name in ("cosine", transformers.SchedulerType.COSINE):
        assert isinstance(make(name, optimizer, 1, 4), Schedule)
    fusedstep.unregister()


def test_what_we_lack_is_refused_where_nothing_is_patched(tmp_path):
    args = arguments(tmp_path, optim="adagrad")
    if not hasattr(fusedstep.optim, "Adagrad"):
        with pytest.raises(ValueError, match=r"optim='adagrad' is torch.*does not mirror. Leave"):
            fusedstep.hf.optimizer_cls_and_kwargs(args)
    else:
        assert fusedstep.hf.optimizer_cls_and_kwargs(args)[0] is fusedstep.optim.Adagrad


def test_what_is_mirrored_follows_from_the_names():
    found = mirrored()
    assert found[torch.optim.Adafactor] is fusedstep.optim.Adafactor
    assert found[transformers.optimization.Adafactor] is fusedstep.hf.Adafactor
    assert all(peer.__name__ == own.__name__ for peer, own in found.items())
    torchs = {k for k, v in vars(torch.optim).items() if isinstance(v, type)}
    ours = {k for k in fusedstep.optim.__all__ if k in torchs}
    assert ours == {p.__name__ for p in found if p.__module__.startswith("torch.")}


def test_accmts_names_are_ours_until_they_are_given_back(monkeypatch):
    modules = stand_ins.accmt()
    stand_ins.install(monkeypatch, modules)
    names = modules["accmt.hyperparameters"]
    before = dict(vars(names.Optimizer)), dict(vars(names.Scheduler))
    for _ in range(2):
        fusedstep.register(accmt=True)
        assert names.Optimizer.AdamW is fusedstep.optim.AdamW
        assert names.Optimizer.Adafactor is fusedstep.hf.Adafactor
        assert names.Optimizer.LBFGS is torch.optim.LBFGS
        assert names.Optimizer.SGD is getattr(fusedstep.optim, "SGD", torch.optim.SGD)
        assert names.Scheduler.LinearWithWarmup is get_linear_schedule_with_warmup
        assert names.Scheduler.StepLR is torch.optim.lr_scheduler.StepLR
    fusedstep.unregister()
    fusedstep.unregister()
    assert (dict(vars(names.Optimizer)), dict(vars(names.Scheduler))) == before


class Own:
    """A module that makes its own schedule, or none."""

    def __init__(self, makes):
        self.makes = makes

    def get_scheduler(self, optimizer, steps_per_epoch, epochs):
        return (steps_per_epoch, epochs) if self.makes else None


@pytest.mark.parametrize("first", [True, False])
def test_accmts_epochs_count_once_where_they_are_repaired(monkeypatch, first):
    modules = stand_ins.accmt()
    stand_ins.install(monkeypatch, modules)
    trainer = modules["accmt.trainer"].Trainer()
    assert trainer._get_scheduler(Own(False), None, 12, 3) == 36
    if not first:
        fusedstep.register(accmt=True)
        assert trainer._get_scheduler(Own(False), None, 12, 3) == 36
    fusedstep.register(accmt=first, repair_epochs=True)
    assert trainer._get_scheduler(Own(False), None, 12, 3) == 12
    assert trainer._get_scheduler(Own(False), None, 7, 1) == 7  # of max_steps
    assert trainer._get_scheduler(Own(True), None, 12, 3) == (4, 3)  # as accmt documents it
    fusedstep.unregister()
    assert trainer._get_scheduler(Own(False), None, 12, 3) == 36


def test_timm_has_names_of_ours_and_refuses_those_it_would_misread(monkeypatch):
    factory = stand_ins.install(monkeypatch, stand_ins.timm())
    registry, layer = factory.default_registry, torch.nn.Linear(2, 2)
    before = dict(registry._optimizers)
    assert type(registry.create_optimizer(layer, "fusedstep_adamw")) is torch.optim.AdamW
    for _ in range(2):
        fusedstep.register(timm=True)
    own = registry.create_optimizer(layer, "fusedstepadamw", lr=0.5)
    assert type(own) is fusedstep.optim.AdamW and own.param_groups[0]["lr"] == 0.5
    assert registry.create_optimizer(layer, "fusedstepamsgrad").param_groups[0]["amsgrad"]
    assert type(registry.create_optimizer(layer, "fusedstephfadafactor")) is fusedstep.hf.Adafactor
    assert type(registry.create_optimizer(layer, "adamw")) is torch.optim.AdamW
    assert "fusedsteplbfgs" not in registry._optimizers
    info = registry._optimizers["fusedstepadafactor"]
    assert (info.has_betas, info.has_momentum, info.has_eps) == (False, False, True)
    for wrong, right in {
        "fusedstep_adamw": "fusedstepadamw",
        "FusedStep_Adam_W": "fusedstepadamw",
        "lookahead_fusedstep_hf_adafactor": "lookahead_fusedstephfadafactor",
    }.items():
        with pytest.raises(ValueError, match=f"last underscore.*Write '{right}'"):
            registry.create_optimizer(layer, wrong)
    fusedstep.unregister()
    assert registry._optimizers == before and "create_optimizer" not in vars(registry)


def test_nothing_is_registered_after_an_error(monkeypatch):
    modules = stand_ins.accmt()
    stand_ins.install(monkeypatch, modules)
    del modules["accmt.hyperparameters"].Scheduler
    trained = TRAINER.get_optimizer_cls_and_kwargs
    with pytest.raises(RuntimeError, match=r"has no accmt.hyperparameters.Scheduler.*needs accmt"):
        fusedstep.register(transformers=True, accmt=True)
    assert TRAINER.get_optimizer_cls_and_kwargs is trained
    assert modules["accmt.hyperparameters"].Optimizer.AdamW is torch.optim.AdamW


def test_a_hook_that_is_gone_is_named_with_the_version(monkeypatch):
    monkeypatch.setattr(transformers.trainer, "Trainer", type("Trainer", (), {}))
    said = rf"transformers {transformers.__version__} has no Trainer.get_optimizer_cls_and_kwargs"
    with pytest.raises(RuntimeError, match=f"{said}.*register needs transformers"):
        fusedstep.register(transformers=True)


def test_a_change_that_fails_takes_the_others_back(monkeypatch):
    class Closed(type):
        def __setattr__(cls, name, value):
            raise AttributeError(f"{name} cannot be set")

    modules = stand_ins.accmt()
    stand_ins.install(monkeypatch, modules)
    names = modules["accmt.hyperparameters"]
    names.Scheduler = Closed("Scheduler", (), dict(vars(names.Scheduler)))
    with pytest.raises(AttributeError, match="cannot be set"):
        fusedstep.register(accmt=True)
    assert names.Optimizer.AdamW is torch.optim.AdamW


def test_what_somebody_else_changed_later_is_left(monkeypatch):
    modules = stand_ins.accmt()
    stand_ins.install(monkeypatch, modules)
    names = modules["accmt.hyperparameters"]
    fusedstep.register(accmt=True)
    names.Optimizer.AdamW = torch.optim.Adam
    with pytest.warns(UserWarning, match=r"Optimizer\.AdamW was changed again"):
        fusedstep.unregister()
    assert names.Optimizer.AdamW is torch.optim.Adam
    assert names.Optimizer.Adafactor is transformers.optimization.Adafactor


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({}, ValueError, "pass one or more of transformers=True, accmt=True, timm=True"),
        ({"repair_epochs": True}, ValueError, "pass accmt=True too"),
        ({"accmt": True}, ImportError, r"accmt is not installed. Install accmt 1.9.*pip install"),
        ({"timm": True}, ImportError, r"timm is not installed. Install timm 1.0"),
    ],
)
def test_what_cannot_be_registered_is_said(monkeypatch, asked, error, said):
    for name in ("accmt.hyperparameters", "timm.optim._optim_factory"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    monkeypatch.setattr("fusedstep.frameworks.packages.version", lambda package: None)
    with pytest.raises(error, match=said):
        fusedstep.register(**asked)


def test_a_package_that_is_there_and_fails_is_named_with_its_version(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.optim._optim_factory", None)
    monkeypatch.setattr("fusedstep.frameworks.packages.version", lambda package: "0.9.2")
    with pytest.raises(ImportError, match=r"timm 0.9.2 is installed, but timm.optim"):
        fusedstep.register(timm=True)


def test_importing_the_package_loads_neither_torch_nor_frameworks():
    code = (
        "import sys, fusedstep; dir(fusedstep); print('torch' in sys.modules); "
        "fusedstep.optim.AdamW; import fusedstep.hf; "
        "print([m for m in ('transformers', 'accmt', 'timm', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["False", "[]"]
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        fusedstep.nothing  # noqa: B018
    assert issubclass(fusedstep.optim.AdamW, FusedOptimizer)
