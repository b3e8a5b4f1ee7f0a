"""fusedstep.config: optimizer and schedule from accmt's layout, strictly."""

import builtins
import copy

import pytest
import torch
import yaml

import fusedstep.hf
import fusedstep.optim
from fusedstep.config import HyperParameters, build
from fusedstep.schedules import WarmUp

ADAMW = {"type": "AdamW", "lr": "1e-2"}
LINEAR = {"type": "LinearWithWarmup", "warmup_ratio": "0.25"}
YAML = """
other: this is not ours
hps:
  epochs: 2
  batch_size: [4, 8]
  optimizer:
    type: AdamW
    lr: 1e-2
    betas: [0.8, 9e-1]
    state_dtype: bfloat16
    amsgrad: "false"
  scheduler: {type: LinearWithWarmup, warmup_ratio: 0.25}
"""


def model():
    return torch.nn.Linear(3, 3)


def rates(optimizer, schedule, steps):
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


def test_a_yaml_file_is_read(tmp_path):
    file = tmp_path / "hps.yaml"
    file.write_text(YAML)
    for path in (file, str(file)):
        optimizer, schedule = build(path, model(), steps_per_epoch=4)
        assert type(optimizer) is fusedstep.optim.AdamW
        assert optimizer.defaults["betas"] == (0.8, 0.9) and not optimizer.defaults["amsgrad"]
        assert optimizer.precision.state_dtype is torch.bfloat16
        expected = [0, 0.005, 0.01, *(0.01 * left / 6 for left in (5, 4, 3, 2, 1)), 0]
        assert rates(optimizer, schedule, 9) == pytest.approx(expected)


def test_without_pyyaml_a_file_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    imported = builtins.__import__

    def without_yaml(name, *args, **kwargs):
        if name == "yaml":
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_yaml)
    with pytest.raises(ImportError, match="needs PyYAML: pip install pyyaml, or pass a dict"):
        build(tmp_path / "hps.yaml", model())
    assert type(build({"optimizer": ADAMW}, model())[0]) is fusedstep.optim.AdamW


@pytest.mark.parametrize(
    ("run", "steps_per_epoch", "total"),
    [
        ({"epochs": 2}, 4, 8),
        ({"epochs": "2"}, "4", 8),
        ({"max_steps": 8, "epochs": 5}, 100, 8),
        ({"max_steps": 8}, None, 8),
        ({"epochs": 8, "step_scheduler_per_epoch": True}, 100, 8),
        ({"epochs": 8, "step_scheduler_per_epoch": "true"}, None, 8),
    ],
)
def test_a_schedule_is_as_long_as_the_training(run, steps_per_epoch, total):
    config = {"hps": {**run, "optimizer": ADAMW, "scheduler": LINEAR}}
    before = copy.deepcopy(config)
    optimizer, schedule = build(config, model(), steps_per_epoch)
    found = rates(optimizer, schedule, total + 1)
    assert max(found) == found[total // 4] == 0.01
    assert found.index(0.0, 1) == total and config == before


def test_a_schedule_of_torch_gets_its_length_and_its_warm_up():
    once = {"type": "OneCycleLR", "max_lr": "1e-2", "warmup_ratio": 0.25}
    hps = {"epochs": 2, "optimizer": ADAMW, "scheduler": once}
    _, schedule = build(hps, model(), 4)
    assert type(schedule) is WarmUp and schedule.schedule.total_steps == 6
    assert build({"optimizer": ADAMW}, model())[1] is None


def test_adafactor_is_transformers_as_in_accmt():
    for name, kind in {
        "Adafactor": fusedstep.hf.Adafactor,
        "hf.Adafactor": fusedstep.hf.Adafactor,
        "optim.Adafactor": fusedstep.optim.Adafactor,
    }.items():
        hps = HyperParameters(optimizer=name)
        assert hps.optimizer is kind and type(hps.build(model())[0]) is kind
        again = HyperParameters.from_config(hps.to_dict())
        assert again.optimizer is kind


HPS = HyperParameters(
    epochs=3,
    batch_size=(4, 8),
    optimizer="adam_w",
    optim_kwargs={"lr": "1e-3", "betas": ["0.9", 0.99], "state_dtype": "bfloat16"},
    scheduler="CosineWithWarmup",
    scheduler_kwargs={"warmup_ratio": ".1"},
)


def test_a_config_can_be_written_and_read_again():
    written = HPS.to_dict()
    assert written == {
        "hps": {
            "epochs": 3, "max_steps": None, "batch_size": [4, 8],
            "optimizer": {
                "type": "AdamW", "lr": 0.001, "betas": [0.9, 0.99], "state_dtype": "bfloat16",
            },
            "scheduler": {"type": "CosineWithWarmup", "warmup_ratio": 0.1},
            "step_scheduler_per_epoch": False,
        }
    }  # fmt: skip
    again = HyperParameters.from_config(written)
    assert again.to_dict() == written and vars(again) == vars(HPS)
    assert yaml.safe_load(yaml.safe_dump(written)) == written


def test_a_flat_config_has_every_setting():
    assert HPS.get_config() == {
        "epochs": 3, "max_steps": None, "batch_size": [4, 8], "optimizer": "AdamW", "lr": 0.001,
        "betas": [0.9, 0.99], "state_dtype": "bfloat16", "scheduler": "CosineWithWarmup",
        "warmup_ratio": 0.1,
    }  # fmt: skip
    plateau = {"type": "reduce_lr_on_plateau", "eps": 1e-9}
    both = HyperParameters.from_config({"optimizer": {**ADAMW, "eps": 1e-7}, "scheduler": plateau})
    assert both.get_config()["eps"] == 1e-7 and both.get_config()["scheduler_eps"] == 1e-9
    assert both["epochs"] == 1


def test_classes_and_functions_are_names_too():
    hps = HyperParameters(
        optimizer=fusedstep.optim.AdamW,
        scheduler=fusedstep.hf.get_linear_schedule_with_warmup,
    )
    assert (hps.optimizer_name, hps.scheduler_name) == ("AdamW", "LinearWithWarmup")


WRONG = [
    ({"batch_sise": 4}, ValueError, "unknown key 'batch_sise' .did you mean 'batch_size'"),
    ({"hsp": {}}, ValueError, "unknown key 'hsp' .did you mean 'hps'"),
    ({"optimizer": {"type": "AdamWW"}}, ValueError, "'AdamWW' .did you mean 'AdamW'"),
    ({"optimizer": {"type": "AdamW", "learning_rate": 1}}, TypeError, "did you mean 'lr'"),
    ({"optimizer": {"type": "AdamW", "weight_deca": 1}}, TypeError, "mean 'weight_decay'"),
    ({"optimizer": {"type": "AdamW", "lr": "fast"}}, ValueError, "lr should be a number"),
    ({"optimizer": {"lr": 1}}, ValueError, "optimizer has no type"),
    ({"optimizer": "AdamW"}, TypeError, r"optimizer should be like \{type: NAME"),
    ({"optimizer": None}, ValueError, "hps has no optimizer"),
    ({"scheduler": {"type": "CosineWithWarmupp"}}, ValueError, "did you mean 'CosineWithWarmup'"),
    ({"scheduler": {**LINEAR, "warmup_rati": 1}}, TypeError, "did you mean 'warmup_ratio'"),
    ({"scheduler": {**LINEAR, "num_training_steps": 1}}, ValueError, "follows from the run"),
    ({"scheduler": {"type": "LinearWithWarmup"}}, ValueError, "give num_warmup_steps or warmup"),
    ({"scheduler": {**LINEAR, "warmup_ratio": 2}}, ValueError, "from 0 to 1 but is: 2"),
    ({"epochs": 0}, ValueError, "epochs should be a whole number of 1 or more but is: 0"),
    ({"epochs": "2.5"}, ValueError, "epochs should be a whole number"),
    ({"epochs": "many"}, ValueError, "epochs should be a number"),
    ({"batch_size": [1, 2, 3]}, ValueError, "batch_size should be a number, or two"),
    ({"step_scheduler_per_epoch": 3}, TypeError, "should be true or false but is: 3"),
    ({"step_scheduler_per_epoch": True, "max_steps": 9}, ValueError, "max_steps=9 replaces"),
]


@pytest.mark.parametrize(("changed", "error", "said"), WRONG, ids=lambda x: str(x)[:50])
def test_what_is_wrong_is_an_error_that_says_what_to_do(changed, error, said):
    hps = {"optimizer": ADAMW, "scheduler": LINEAR, **changed}
    with pytest.raises(error, match=said):
        build({"hps": hps}, model(), steps_per_epoch=4)


def test_a_length_that_nobody_gave_is_asked_for():
    with pytest.raises(ValueError, match=r"needs num_training_steps.*steps_per_epoch"):
        build({"optimizer": ADAMW, "scheduler": {"type": "linear", "num_warmup_steps": 2}}, model())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"optimizer": torch.optim.AdamW}, "a name or a class of fusedstep but is"),
        ({"optimizer": "AdamW", "scheduler": print}, "scheduler should be a name or a function"),
    ],
)
def test_what_is_not_ours_is_refused(arguments, said):
    with pytest.raises(TypeError, match=said):
        HyperParameters(**arguments)


def test_settings_without_a_schedule_are_refused():
    with pytest.raises(ValueError, match="settings without a scheduler: warmup_ratio"):
        HyperParameters(optimizer="AdamW", scheduler_kwargs={"warmup_ratio": 0.1})
