"""The parts of `make gpu`: the sanitizer's commands, a signal that ends it, where numbers go."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the predictions read the kernels' work lists")

from bench import gpu, predicted, readme, small_step
from bench.parts import Parts
from bench.providers import OURS, OURS_TRITON

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sanitized(monkeypatch, tmp_path):
    """Runs the sanitizer's part without starting anything. Returns the commands and the results."""

    def run(failing=()):
        commands = {}
        parts = Parts(tmp_path)

        def start(name, command, seconds, **env):
            commands[name] = command
            parts.results.append((name, "passed", 0.0))
            return name not in failing

        monkeypatch.setattr(parts, "run", start)
        monkeypatch.setattr(gpu, "program", lambda name: f"/{name}")
        gpu.sanitizer(parts, 100.0)
        return commands, {name: how for name, how, _ in parts.results}

    return run


def test_the_sanitizer_looks_at_the_step_alone_and_first_for_memory(sanitized):
    commands, _ = sanitized()
    names = list(commands)
    assert names[2:4] == ["memcheck-cuda", "memcheck-triton"]
    assert len(names) == len(gpu.BACKENDS) * (1 + len(gpu.TOOLS))
    for name in names[2:]:
        command = commands[name]
        assert command[command.index("--target-processes") + 1] == "application-only"
        assert ("--report-api-errors" in command) == name.startswith("memcheck")
        assert command[-4:] == commands[f"small-step-{name.split('-')[1]}"][-4:]


def test_tools_that_could_not_look_at_a_step_have_failed(sanitized):
    commands, results = sanitized(failing=["small-step-triton"])
    assert not any(f"{tool}-triton" in commands for tool in gpu.TOOLS)
    for tool in gpu.TOOLS:
        assert results[f"{tool}-triton"] == "FAILED: small-step did not pass"
        assert results[f"{tool}-cuda"] == "passed"


def test_small_steps_walk_in_every_way_that_there_is(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["small_step", "--device", "cpu", "--backend", "reference"])
    monkeypatch.setenv("FUSEDSTEP_BACKEND", os.environ.get("FUSEDSTEP_BACKEND", ""))
    assert small_step.main() == 0
    assert capsys.readouterr().out.count(": done\n") == len(small_step.CASES)
    wanted = {(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)}
    for name in ("AdamW", "Adafactor"):
        assert {(run.dtype, run.misaligned) for run in small_step.CASES[name][1]} == wanted


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def wait_for(condition):
    end = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


LONG_PART = """
import signal, sys
from pathlib import Path
from bench import gpu
from bench.parts import Parts
out = Path(sys.argv[1])
child = "import os, subprocess, sys, time; from pathlib import Path;" \\
    "own = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)']);" \\
    "Path('made').write_text(f'{os.getpid()} {own.pid}'); os.rename('made', 'pids'); own.wait()"
def part(parts, *_):
    parts.run("long", [sys.executable, "-c", f"import os; os.chdir({str(out)!r}); {child}"], 300)
gpu.no_gpu = lambda: ""
gpu.assemble = part
import torch
torch.cuda.get_device_name = lambda: "a GPU"
sys.argv = ["gpu", "--out", str(out)]
sys.exit(gpu.main())
"""


@pytest.mark.parametrize(("sent", "status"), [
    (signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, -signal.SIGINT)
])  # fmt: skip
def test_a_signal_to_make_gpu_ends_the_part_that_runs(tmp_path, sent, status):
    begun = subprocess.Popen(
        [sys.executable, "-c", LONG_PART, str(tmp_path)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    pids = []
    try:
        wait_for((tmp_path / "pids").is_file)
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        assert len(pids) == 2 and all(map(is_there, pids))
        begun.send_signal(sent)
        assert begun.wait(60) == status
        wait_for(lambda: not any(map(is_there, pids)))
    finally:
        begun.kill()
        for pid in filter(is_there, pids):
            os.kill(pid, signal.SIGKILL)


FACTS = {
    **{"gpu": "NVIDIA H200", "fusedstep_takes": "cuda (C++ for 90-real)", "torch": "2.13"},
    **{"transformers": "5.23.0", "commit": None, "date": "2026-11-22 10:00 UTC"},
    **{"command": "python -m bench.step --device cuda"},
}


def results(folder, name, ms, *, interrupted=False, takes="cuda (C++)"):
    rows = [
        {"list": "llama-1b", "dtype": "bfloat16", "rule": "adafactor-hf-trainer", "ratio": 1.0,
         "provider": provider, "ms": ms + k}
        for k, provider in enumerate((OURS, OURS_TRITON))
    ]  # fmt: skip
    path = folder / "2026-11-22-h200" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {**FACTS, "fusedstep_takes": takes}
    path.write_text(json.dumps({"environment": facts, "interrupted": interrupted, "rows": rows}))


def page_with(monkeypatch, tmp_path):
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    said = predicted.page(predicted.predict.predictions())
    lines = [line.split(" | ") for line in said.splitlines() if line.startswith("| llama-1b |")]
    found = {}
    for cells in lines:
        if cells[1:3] == ["bfloat16", "adafactor-hf-trainer"]:
            found[cells[3]] = cells[-2]
    return said, found


@pytest.mark.parametrize("interrupted", [False, True])
def test_predictions_stand_beside_what_a_gpu_measured(monkeypatch, tmp_path, interrupted):
    results(tmp_path, "step", 3.25, interrupted=interrupted)
    said, found = page_with(monkeypatch, tmp_path)
    assert found == {OURS: "3.250", OURS_TRITON: "4.250", "transformers": ""}
    assert (
        f'"measured ms",\nmeasured on NVIDIA H200 on 2026-11-22{", interrupted" * interrupted} '
        "([table](2026-11-22-h200/step.md))." in said
    )


def test_another_backend_than_cuda_is_not_put_beside_cudas_predictions(monkeypatch, tmp_path):
    results(tmp_path, "step", 3.25, takes="triton (3.6)")
    _, found = page_with(monkeypatch, tmp_path)
    assert found[OURS] == "" and found[OURS_TRITON] == "4.250"


def test_predictions_without_a_measurement_say_so(monkeypatch, tmp_path):
    said, found = page_with(monkeypatch, tmp_path)
    assert set(found.values()) == {""} and '"measured ms",\nempty until `make gpu` has run.' in said


@pytest.mark.parametrize("interrupted", [False, True])
def test_readme_says_which_backend_ran_and_whether_it_is_all(interrupted):
    folder = readme.ROOT / "bench" / "results" / "somewhere"
    said = readme.source_of(folder, {"environment": FACTS, "interrupted": interrupted}, "step.md")
    assert said.startswith("NVIDIA H200, fusedstep's backend cuda (C++ for 90-real), torch 2.13")
    assert "commit unknown, " in said and "None" not in said
    assert ("on 2026-11-22, interrupted: a part of it: " in said) == interrupted
    assert "[the whole table](bench/results/somewhere/step.md)" in said
