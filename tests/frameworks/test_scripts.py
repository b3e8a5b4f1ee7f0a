"""The scripts of docs/scripts run and learn; what they say of a resume is true."""

import sys
from pathlib import Path
from statistics import mean

import pytest

SCRIPTS = Path(__file__).parents[2] / "docs" / "scripts"
SMALL = ["--width", "32", "--layers", "2", "--rows", "4", "--length", "32"]


@pytest.fixture
def script(monkeypatch):
    """Runs a script's main in this process."""

    def run(name, *arguments):
        monkeypatch.syspath_prepend(SCRIPTS)
        module = __import__(name)
        assert "\n    python docs/scripts/" + name in module.__doc__
        return module.main([*map(str, arguments)])

    names = {path.stem for path in SCRIPTS.glob("*.py")}
    yield run
    for name in names & {*sys.modules}:
        del sys.modules[name]


def learns(losses):
    return mean(losses[-3:]) < 0.9 * mean(losses[:3])


def test_pretraining_learns_and_a_resume_has_the_losses_of_a_run_that_went_on(script, tmp_path):
    half = tmp_path / "half.pt"
    small = [*SMALL, "--steps", 24, "--lr", 1e-2]
    whole = script("pretrain_bf16", *small)
    first = script("pretrain_bf16", *small, "--stop", 9, "--save", half)
    rest = script("pretrain_bf16", *small, "--resume", half)
    assert [*first, *rest] == whole
    assert learns(whole)


def test_offloading_learns_what_training_on_one_device_does(script, monkeypatch):
    small = [*SMALL, "--steps", 16, "--lr", 1e-2]
    offloaded = script("cpu_offload", *small)
    assert learns(offloaded)
    cpu_offload = sys.modules["cpu_offload"]
    monkeypatch.setattr(cpu_offload, "Offloaded", OnOneDevice)
    assert cpu_offload.main([*map(str, small)]) == offloaded


class OnOneDevice:
    """What Offloaded replaces: the same optimizer on the model's own parameters."""

    def __init__(self, model, lr):
        from fusedstep.optim import AdamW

        self.optimizer = AdamW(model.parameters(), lr=lr, master_weights=True)

    def step(self):
        self.optimizer.step()
        self.optimizer.zero_grad()


def test_fine_tuning_learns(script, tmp_path):
    pytest.importorskip("transformers")
    assert learns(script("finetune_t5", "--steps", 60, "--out", tmp_path))
