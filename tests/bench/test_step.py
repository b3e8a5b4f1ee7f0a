"""`python -m bench.step` as a user types it: files, errors, failures, an interruption. And README's
numbers, which are written from its results."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench import providers, race, readme, step
from bench.clock import Outcome
from bench.extra import extra_bytes, launches
from bench.lists import LISTS
from bench.optimizers import HERE, PROVIDERS, RULES
from bench.providers import OURS, Race, lazily
from fusedstep.optim import AdamW

ROOT = Path(__file__).parents[2]

FEW = ["--rules", "adamw", "--lists", "host", "--rounds", "1", "--providers", OURS, "torch-fused"]


def command(*words):
    return [sys.executable, "-m", "bench.step", *map(str, words)]


def here(monkeypatch, *words):
    """Runs the command and its races in this process."""
    monkeypatch.setattr(sys, "argv", ["bench.step", *map(str, words)])
    monkeypatch.setattr(step, "copy_bandwidth", lambda *_: (1e10, False))
    monkeypatch.setattr(race, "one_by_one", lambda work, arguments, _: work(*arguments))
    try:
        return step.main()
    except SystemExit as exit:
        return exit.code


def test_a_race_leaves_a_table_numbers_and_a_picture(monkeypatch, tmp_path, capsys):
    assert here(monkeypatch, *FEW, "--out", tmp_path) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"step.json", "step.md", "step.png"}
    results = json.loads((tmp_path / "step.json").read_text())
    assert not results["interrupted"] and results["copy_bytes_a_second"] == 1e10
    assert {"torch", "commit", "command", "date", "cpu"} <= set(results["environment"])
    own, fused = results["rows"]
    assert (own["provider"], fused["provider"]) == (OURS, "torch-fused")
    assert own["ratio"] == 1.0 and own["launches"] < 30
    # One torch operator each for step counters and update, whatever the number of tensors.
    assert 1 <= fused["launches"] <= 4
    shown = capsys.readouterr().out
    assert "us/param" in shown and "launches" in shown and "extra MB" in shown


@pytest.mark.parametrize(("words", "said"), [
    (["--lists", "68m"], "invalid choice: '68m' (choose from"),
    (["--providers", "torch-fast"], "invalid choice: 'torch-fast' (choose from"),
    (["--rules", "adams"], "invalid choice: 'adams' (choose from"),
    (["--dtypes", "fp32"], "invalid choice: 'fp32' (choose from"),
    (["--device", "tpu"], "invalid choice: 'tpu' (choose from"),
    (["--rounds", "0"], "0 is not positive"),
    (["--rules", "adamw", "--lists", "4096x4096"], "have no race in common"),
    (["--rules", "adamw", "--providers", "transformers"], "on cpu these rules have fusedstep"),
])  # fmt: skip
def test_what_there_is_not_is_an_error_with_the_choices(monkeypatch, capsys, words, said):
    assert here(monkeypatch, *words) == 2
    assert said in capsys.readouterr().err


def test_a_provider_that_fails_is_a_row_and_the_others_go_on(monkeypatch, tmp_path, capsys):
    def broken(params):
        optimizer = torch.optim.AdamW(params)
        optimizer.step = lambda: 1 / 0
        return optimizer

    own = RULES["adamw"].providers
    monkeypatch.setitem(own, "torch-fused", broken)
    monkeypatch.setitem(own, "torch-foreach", lazily("no_such_module", "AdamW"))
    assert here(monkeypatch, *FEW, "torch-foreach", "--out", tmp_path) == 0
    rows = json.loads((tmp_path / "step.json").read_text())["rows"]
    notes = {row["provider"]: row["note"] for row in rows if row["ms"] is None}
    assert notes == {
        "torch-fused": "failed: ZeroDivisionError: division by zero",
        "torch-foreach": "no_such_module is not installed",
    }
    assert "ZeroDivisionError" in capsys.readouterr().out
    monkeypatch.setitem(own, OURS, broken)  # now the command itself fails
    assert here(monkeypatch, *FEW, "--out", tmp_path) == 1


def test_a_provider_whose_launches_cannot_be_counted_keeps_its_time(monkeypatch, tmp_path):
    def shy(params):
        optimizer = torch.optim.AdamW(params)
        own = optimizer.step

        def step():
            assert not torch.utils._python_dispatch._get_current_dispatch_mode()
            own()

        optimizer.step = step
        return optimizer

    monkeypatch.setitem(RULES["adamw"].providers, "torch-fused", shy)
    assert here(monkeypatch, *FEW, "--out", tmp_path) == 0
    ours, other = json.loads((tmp_path / "step.json").read_text())["rows"]
    assert other["ms"] and other["launches"] is None and ours["launches"]


def hears_ctrl_c():
    """Whether ctrl-c reaches this process. Background jobs of a shell ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_ctrl_c_leaves_finished_rows(tmp_path):
    words = ["--rules", "adamw", "--lists", "host", "10x8M", "--providers", OURS, "--out", tmp_path]
    begun = subprocess.Popen(
        command(*words), cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=hears_ctrl_c
    )
    file = tmp_path / "step.json"
    end = time.monotonic() + 120
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(begun.pid, signal.SIGINT)
    _, said = begun.communicate(timeout=60)
    assert begun.returncode == 130 and "interrupted" in said, said
    results = json.loads(file.read_text())
    assert results["interrupted"] and [row["list"] for row in results["rows"]] == ["host"]


def test_what_is_not_installed_is_raced_only_if_asked_for():
    others = {name for rule in RULES.values() for name in rule.peers}
    assert {"optimi", "flashoptim", "torchao", "adafactor8bit", "apex", "transformer-engine",
            "deepspeed-cpu", "torch-compiled"} <= others <= set(PROVIDERS)  # fmt: skip
    assert lazily("torch.optim", "AdamW").is_installed()
    for rule in RULES.values():
        for name, peer in rule.peers.items():
            assert (name in HERE) == (peer.is_installed() and name not in providers.ONLY_ASKED)
    assert all(providers.OURS_REFERENCE in rule.providers for rule in RULES.values())


def test_a_compiled_step_is_the_same_step():
    params = [torch.nn.Parameter(torch.ones(4)) for _ in range(2)]
    for param in params:
        param.grad = torch.full((4,), 0.5)
    settings = {"lr": 0.5, "weight_decay": 0.0}
    build = providers.Lazily("torch.optim", "AdamW", settings, compiled=True)
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda step: lambda: calls.append(step()))
        build(params).step()
    assert len(calls) == 1 and torch.allclose(params[0], torch.full((4,), 0.5))


def test_extra_memory_and_launches_are_those_of_a_step():
    def prepared(make, elements=1 << 20):
        param = torch.nn.Parameter(torch.ones(elements))
        param.grad = torch.ones(elements)
        optimizer = make([param])
        for _ in range(2):
            optimizer.step()
        return optimizer.step

    own, plain = prepared(AdamW), prepared(lambda p: torch.optim.AdamW(p, foreach=False))
    assert extra_bytes(own, "cpu") < 1 << 16
    assert 4 << 20 <= extra_bytes(plain, "cpu") <= 13 << 20  # temporaries as large as the parameter
    assert launches(own, "cpu") < 30 and launches(plain, "cpu") > 5


def test_lists_have_the_sizes_that_they_are_named_for():
    millions = {"t5-small": 60.5, "gpt2": 124.4, "vit-b": 86.6, "llama-7b, 1 layer": 202.4}
    for name, size in millions.items():
        assert LISTS[name].elements == pytest.approx(size * 1e6, rel=1e-3)
    assert LISTS["512 experts"].shapes[0][0] == 512 and len(LISTS["lora"].shapes) == 2000


def test_every_race_has_a_floor_and_a_list():
    for name, chosen in LISTS.items():
        for rule, entry in RULES.items():
            if entry.races_on(chosen):
                assert chosen.floor_bytes(entry.rule, torch.float32) > 0
                assert Race(rule, chosen, "float32", (OURS,)) and name


def test_pages_say_what_the_results_say():
    for page in readme.PAGES:
        assert readme.page(page) == page.read_text(), f"{page}: run python -m bench.readme"
    text = "".join(page.read_text() for page in readme.PAGES)
    assert all(f"<!-- numbers: {name} -->\n" in text for name in readme.BLOCKS)


def test_numbers_that_nobody_has_are_an_error():
    with pytest.raises(ValueError, match="asks for numbers 'speed': there are summary"):
        readme.written("<!-- numbers: speed -->\n<!-- end of numbers -->\n")


def test_an_outcome_without_extras_has_none_in_the_table():
    from bench.devices import DEVICES
    from bench.table import rows_of, text

    chosen = Race("adamw", LISTS["small"], "float32", (OURS,))
    rows = rows_of(chosen, Outcome({OURS: [1e-3]}), 1e10, DEVICES["cpu"])
    assert "launches" not in text(rows) and "extra MB" not in text(rows)
