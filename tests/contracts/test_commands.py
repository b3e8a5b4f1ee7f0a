"""The commands of `python -m fusedstep`, as a user types them."""

import os
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

import fusedstep.hf
import fusedstep.optim
from fusedstep import backends
from fusedstep.__main__ import main
from fusedstep.plan.launcher import BackendName
from fusedstep.schedules import SCHEDULES
from fusedstep.schedules.draw import curves, draw
from fusedstep.schedules.trace import trace


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command in this process. Returns its output, its errors, and whether it failed."""

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["fusedstep", *map(str, words)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as exit:
            code = exit.code
        seen = capsys.readouterr()
        said = seen.err + (code if isinstance(code, str) else "")
        return SimpleNamespace(out=seen.out, err=said, failed=bool(code))

    return command


def test_info_names_every_backend():
    words = [sys.executable, "-m", "fusedstep", "info"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert fusedstep.__version__ in said
    for name in ("cpu", "cuda", "triton", "reference"):
        assert f"\n  {name}" in said
    assert "\nsharded parameters (DTensors): every optimizer takes them" in said


def test_the_version_alone(run):
    assert run("info", "--version").out == f"{fusedstep.__version__}\n"


def test_the_package_shows_what_it_has():
    said = subprocess.run(
        [sys.executable, "-c", "import fusedstep; print(dir(fusedstep)); fusedstep.optim.AdamW"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert said == f"{fusedstep.__all__}\n"
    assert all(getattr(fusedstep, name) is not None for name in fusedstep.__all__)


def test_the_types_name_the_backends():
    assert get_args(BackendName) == ("auto", *backends.BACKENDS)


def with_level(level, *words):
    own = {**os.environ, "FUSEDSTEP_CPU_LEVEL": level}
    command = [sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, env=own, check=False)


STEP = """
import torch, fusedstep.optim
param = torch.nn.Parameter(torch.ones(3))
param.grad = torch.ones(3)
optimizer = fusedstep.optim.AdamW([param])
try:
    optimizer.step()
except ValueError as error:
    print(error)
print(param.tolist(), len(optimizer.state))
"""


def test_a_wrong_level_of_the_cpu_is_said_in_a_line():
    wrong = "FUSEDSTEP_CPU_LEVEL should be one of .*baseline.* but is: 'sse9'"
    done = with_level("sse9", "-m", "fusedstep", "info")
    assert done.returncode == 0
    assert re.search(rf"^cpu tensors: {wrong}$", done.stdout, re.MULTILINE)
    done = with_level("sse9", "-c", STEP)
    said, numbers = done.stdout.splitlines()
    assert re.fullmatch(wrong, said) and numbers == "[1.0, 1.0, 1.0] 0"
    assert "C++, baseline " in with_level("baseline", "-m", "fusedstep", "info").stdout


@pytest.mark.parametrize("words", [
    ("--steps", 5, "--warmup", "0.4", "--lr", 0.5, "num_cycles=1"),
    ("num_cycles=1", "--steps", 5, "--warmup", 2, "--lr", 0.5),
], ids=["settings last", "settings first"])  # fmt: skip
def test_schedule_prints_the_values(run, words):
    done = run("schedule", "cosine", *words)
    header, *lines = done.out.splitlines()
    assert header == "step lr"
    values = trace("cosine", 5, steps=5, lr=0.5, num_warmup_steps=2, num_cycles=1)
    assert [line.split() for line in lines] == [[str(s), f"{v:.9g}"] for s, v in enumerate(values)]


def test_schedule_has_no_warm_up_by_default(run):
    assert run("schedule", "linear", "--steps", 4).out.splitlines()[1:] == [
        "0 1", "1 0.75", "2 0.5", "3 0.25",
    ]  # fmt: skip


def test_a_reader_that_closes_the_pipe_is_no_error():
    words = [sys.executable, "-m", "fusedstep", "schedule", "linear", "--steps", "5000"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as own:
        assert own.stdout.readline() == "step lr\n"
        own.stdout.close()
        assert own.stderr.read() == ""
    assert own.returncode == 0


def test_schedule_shows_the_loss_that_a_schedule_follows(run):
    lines = run("schedule", "greedy", "--steps", 9, "--every", 4, "patience=0").out.splitlines()
    assert lines[0] == "step lr example_loss"
    assert [line.split()[0] for line in lines[1:]] == ["0", "4", "8"]


@pytest.mark.parametrize(("words", "said"), [
    (("schedule", "cosinus", "--steps", 5), "did you mean 'cosine'?"),
    (("schedule", "StepLR", "--steps", 5), "schedule 'StepLR' needs step_size"),
    (("schedule", "StepLR", "--steps", 5, "size=2"), "has no argument 'size' (did you mean"),
    (("schedule", "linear", "--steps", 0), "--steps should be 1 or more but is: 0"),
    (("schedule", "linear", "--steps", 5, "--every", 0), "--every should be 1 or more"),
    (("schedule", "StepLR", "--steps", 5), "needs step_size: give step_size="),
    (("schedule", "linear", "--steps", 5, "--warmup", -1), "num_warmup_steps should be 0 or more"),
    (("schedule", "linear", "--steps", 5, "2"), "a setting should look like num_cycles=2"),
    (("schedule", "linear", "--steps", 5, "--what", "2"), "unknown arguments: --what 2"),
    (("schedule", "linear"), "--steps"),
    (("schedule", "linear", "--steps", 5, "lr=2"), "lr is set by --lr, not a setting"),
    (("schedule", "linear", "--steps", 5, "last_epoch=2"), "last_epoch is -1 here"),
    (("schedule", "StepLR", "--steps", 5, "step_size=0"), "by zero"),
    (("plot-schedules", "CosineAnnealingLR", "--steps", 9, "--warmup", 9), "leaves none of 9"),
    (("plot-schedules", "cosinus"), "did you mean 'cosine'?"),
    (("plot-schedules", "--steps", 0), "steps should be 1 or more"),
    (("plot-schedules", "cosine", "--out", "/no/such/folder/x.png"), "No such file or directory"),
])  # fmt: skip
def test_a_wrong_argument_is_an_error_of_one_line(run, words, said):
    done = run(*words)
    assert done.failed and said in done.err


def test_every_schedule_has_its_panel(run, tmp_path):
    drawn = {SCHEDULES[name] for name in curves(100, 10)}
    assert drawn == set(SCHEDULES.values())
    few = tmp_path / "few.png"
    done = run("plot-schedules", "cosine", "CosineWithWarmup", "StepLR", "--out", few)
    assert done.out == f"saved {few}\n"
    draw(tmp_path / "all.png", steps=7)
    for path in (few, tmp_path / "all.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_panels_can_be_as_short_as_a_run(steps):
    for name, given in curves(steps, steps // 10).items():
        for arguments in given:
            assert len(trace(name, steps, steps, **arguments)) == steps


def test_without_matplotlib_it_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install 'fusedstep[plot]'" in run("plot-schedules").err


def test_convert_writes_a_file_or_says_why_not(run, tmp_path):
    param = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = fusedstep.optim.Adafactor([param])
    param.grad = torch.ones(3, 2)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "old.pt")
    said = run("convert", tmp_path / "old.pt", tmp_path / "new.pt", "--to", "transformers")
    assert not said.failed and "new.pt: transformers' Adafactor, " in said.out
    new = fusedstep.hf.Adafactor([param])
    new.load_state_dict(torch.load(tmp_path / "new.pt", weights_only=True))
    said = run("convert", tmp_path / "new.pt", tmp_path / "x.pt", "--to", "transformers")
    assert said.failed and "transformers' Adafactor already" in said.err
    said = run("convert", tmp_path / "nothing.pt", tmp_path / "x.pt", "--to", "torch")
    assert said.failed and "nothing.pt" in said.err
    assert not (tmp_path / "x.pt").exists()
