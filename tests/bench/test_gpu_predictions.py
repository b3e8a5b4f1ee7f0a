"""Without a GPU: the predictions, the pairing of times on any device, the text of `make gpu`."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the predictions read the kernels' work lists")

from bench import gpu, one_pass, predict, predicted, readme, table
from bench.clock import Outcome, take_turns
from bench.devices import DEVICES, Cuda, Sample
from bench.lists import DTYPES, LISTS
from bench.optimizers import PROVIDERS, RULES
from bench.parts import Parts
from bench.providers import OURS, OURS_TRITON, Race

ROOT = Path(__file__).parents[2]
ROWS = predict.predictions()


def test_the_page_of_predictions_is_written(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    monkeypatch.setattr(sys, "argv", ["predicted", "--out", str(page)])
    predicted.main()
    said = page.read_text()
    lines = [line.split("|") for line in said.splitlines() if line.startswith("| ")]
    measured = [line[12].strip() for line in lines if len(line) == 15]
    assert measured[0] == "measured ms" and len(measured) == 2 + len(ROWS)
    nothing = "empty until `make gpu` has run" in said
    assert nothing == (readme.newest("step", gpu=True) is None) == (not any(measured[2:]))
    reached = [line[3].strip() for line in lines if len(line) == 6 and "|" not in line[1]]
    assert reached[0] == "reached" and set(reached[2:]) <= {"yes", "no"}
    if not torch.cuda.is_available():
        assert said == predicted.PAGE.read_text(), "make predict writes it again"


def test_instructions_are_those_that_the_gates_count():
    def loop(kernel, elements):
        return round(cuda[kernel]["loop"] / elements, 1)

    def most(kernels, name):
        return max(own[kernel][name] for own in triton for kernel in kernels)

    folder = ROOT / "tests"
    cuda = json.loads((folder / "cuda" / "budgets.json").read_text())["kernels"]
    files = (folder / "triton" / "budgets").glob("*.json")
    triton = [json.loads(file.read_text())["kernels"] for file in files]
    reads = {
        "float32": loop("STATISTICS -/fp32/-", 16),
        "bfloat16": loop("STATISTICS -/bf16/-", 32),
    }
    assert reads == predict.READ
    assert loop("STATISTICS -/bf16/- x3", 24) == predict.READ_OF_LONG_ROWS
    assert loop("UPDATE bf16/bf16/-", 16) == predict.UPDATE
    wide = [f"STATISTICS {columns}" for columns in (1024, 2048, 4096, 8192)]
    reads = {
        "float32": most(wide, "fp32 instructions"),
        "bfloat16": most(wide, "bf16 instructions"),
    }
    assert reads == predict.TRITON_READ
    assert most(["SUM_U2 1024"], "bf16 instructions") == predict.TRITON_SUM_U2
    stored = ["noisy/bf16/noisy", "rest16/bf16/fp32", "rest16/bf16/bf16", "bf16/bf16/int8",
              "rest8/bf16/int8"]  # fmt: skip
    for kernel, (_, instructions) in zip(stored, predict.LOW_PRECISION.values(), strict=True):
        assert cuda[f"adamw {kernel}"]["loop"] / 8 == instructions


@pytest.mark.parametrize("name", one_pass.NAMES)
def test_waves_hold_every_matrix_that_fits_and_two_of_them_fit_l2(name):
    own, sizes = one_pass.cut(name), [predict.elements([s]) for s in LISTS[name].shapes]
    assert own.inside == sum(size for size in sizes if 2 * size <= one_pass.WAVE)
    assert own.inside + own.outside == sum(sizes)
    assert 2 * own.inside / one_pass.WAVE <= own.waves <= 4 * own.inside / one_pass.WAVE + 1
    assert 2 * one_pass.WAVE < predict.L2
    assert own.one_read(0.0) <= own.two_reads
    gains = [1 - own.one_read(wait) / own.two_reads for wait in (one_pass.PLAIN, one_pass.INSIDE)]
    assert gains[0] < 0.03 and (gains[1] > 0.03) == (name == "t5-xl")  # the page says so


def test_predicted_bytes_of_adamw_are_the_floor_of_the_list():
    names = (OURS, OURS_TRITON, "torch-fused")
    rows = [r for r in ROWS if r.rule == "adamw" and r.provider in names]
    assert len(rows) == 3 * (2 * len(predict.LARGE) + len(predict.SMALL))
    for row in rows:
        assert row.moved == row.floor_bytes
        assert row.floor_bytes == row.chosen.floor_bytes("adamw", DTYPES[row.dtype])
        each = {"float32": 28, "bfloat16": 14}[row.dtype]
        assert row.moved == each * row.chosen.elements


@pytest.mark.parametrize("provider", [OURS, OURS_TRITON])
def test_predicted_bytes_of_adafactor_are_the_floor_and_what_is_read_again(provider):
    """A matrix needs the gradient once more. It needs the parameter once more if its rms scales the
    step, and the gradient again if a row does not fit in a block or torch's cap changes it. Sums
    add at most 2 %, or twice the scratch that a small list may have."""
    rows = [r for r in ROWS if r.provider == provider and r.rule != "adamw"]
    assert {row.chosen.name for row in rows} == {
        *("llama-1b", "t5-xl", predict.FITTING, *predict.ABOVE),
    }
    for row in rows:
        size = DTYPES[row.dtype].itemsize
        again = 1 if row.rule == predict.TRAINER else 2
        again += row.rule == predict.TORCH and row.dtype == "bfloat16"
        again -= row.chosen.name == predict.FITTING
        again += row.chosen.name == "16384x16384" and row.provider != OURS
        more = row.moved - row.floor_bytes - again * size * row.chosen.elements
        assert 0 <= more <= 2 * max(0.02 * size * row.chosen.elements, 4 * 128 * 8192 * 2 * 4)


def test_predictions_for_cuda_count_the_launches_of_its_own_units():
    """As the plan makes them: STATISTICS, COLUMNS, FINISH, UPDATE and STORE_RMS, since a row fits
    in a block."""
    launches = {
        row.chosen.name: row.launches
        for row in ROWS
        if row.provider == OURS and row.rule == predict.TRAINER
    }
    assert {launches[name] for name in (predict.FITTING, *predict.ABOVE)} == {5}


def test_the_lists_for_gpus_have_the_sizes_that_they_are_named_for():
    assert LISTS["1e9"].elements == 10**9 and len(LISTS["1e9"].shapes) == 10
    assert LISTS["2000 small"].elements == 2000 * 1024 and len(LISTS["2000 small"].shapes) == 2000
    llama = LISTS["llama-1b"]
    assert llama.elements == 1_235_814_400  # as in Llama 3.2 1B
    assert llama.shapes.count((2048,)) == 2 * 16 + 1
    assert LISTS["t5-xl"].elements == 2_849_757_184  # as in T5 v1.1 XL
    for name in (predict.FITTING, *predict.ABOVE):
        ((rows, columns),) = LISTS[name].shapes
        assert name == f"{rows}x{columns}"
        assert (rows * columns * 2 <= predict.L2) == (name == predict.FITTING)
    for device in DEVICES.values():
        assert set(device.lists) <= set(LISTS)


class Fake:
    """A device on which each step returns its times, on the device and on the host."""

    def sample(self, step, repeats):
        return Sample(*step())

    def watch(self):
        return lambda: True

    def cache_note(self, held_bytes, host_bound):
        return "L2 flushed"

    measures_floor = False
    legend = ""


def test_a_devices_own_times_and_the_hosts_reach_the_table():
    steps = {"fusedstep": lambda: (2e-3, 1e-3), "torch-fused": lambda: (4e-3, 3e-3)}
    outcome = take_turns(steps, 3, 1.0, Fake(), lambda *_: None)
    race = Race("adamw", LISTS["small"], "float32", tuple(steps))
    ours, peer = table.rows_of(race, outcome, 1e12, Fake())
    assert (ours.ms, ours.host_ms, peer.ratio, peer.note) == (2.0, 1.0, 2.0, "L2 flushed")
    assert "host ms" in table.text([ours, peer])
    assert "host ms" in table.markdown([ours, peer], "", Fake())


def test_a_list_near_the_caches_size_is_timed_without_the_flush_before_each_step(monkeypatch):
    clock, host = [0.0], [0.0]

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = clock[0]

        def synchronize(self):
            pass

        def elapsed_time(self, later):
            return (later.at - self.at) * 1e3

    def flush():
        clock[0] += 100.0

    def step(on_host=1.0):
        clock[0] += 2.0
        host[0] += on_host

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(time, "perf_counter", lambda: host[0])
    device = Cuda()
    assert device.sample(step, 3).seconds == 2.0 and clock[0] == 6.0
    device.flush = flush
    assert device.sample(step, 3) == Sample(2.0, 1.0) and clock[0] == 6.0 + 3 * 102.0
    # The host works ahead during the flush, so the events do not see how long it takes.
    assert device.sample(lambda: step(on_host=5.0), 3) == Sample(5.0, 5.0)


def test_the_table_of_a_cpu_has_no_column_for_the_host():
    race = Race("adamw", LISTS["small"], "float32", ("fusedstep",))
    rows = table.rows_of(race, Outcome({"fusedstep": [1e-3]}), 1e10, DEVICES["cpu"])
    assert "host ms" not in table.text(rows) + table.markdown(rows, "", DEVICES["cpu"])


def test_providers_for_gpus_are_not_raced_on_a_cpu():
    for rule in RULES.values():
        on_cpu, on_gpu = rule.providers_on("cpu"), rule.providers_on("cuda")
        assert not any("capturable" in name or "triton" in name for name in on_cpu)
        assert list(on_gpu)[:2] == [OURS, OURS_TRITON] and "torch-plain" not in on_gpu
        assert {*on_cpu, *on_gpu} <= set(PROVIDERS)
    assert "torch-capturable" in RULES["adamw"].providers_on("cuda")


def test_the_parts_of_make_gpu_take_twenty_minutes():
    text = (ROOT / "Makefile").read_text()
    assert f"GPU_PARTS ?= {' '.join(gpu.PARTS)}\n" in text
    assert set(gpu.LIMITS) == {"build", *gpu.PARTS}
    assert sum(gpu.LIMITS.values()) <= 20 * 60
    for test in gpu.TESTS:
        assert (ROOT / test).is_file()


def test_what_did_not_pass_is_said_once_more_at_the_end(tmp_path, capsys):
    parts = Parts(tmp_path)
    print_and = "import sys; print('words'); sys.exit"
    assert parts.run("good", [sys.executable, "-c", f"{print_and}(0)"], 60)
    assert not parts.run_all("build", 2 * [[sys.executable, "-c", f"{print_and}(3)"]], 60)
    assert not parts.run("slow", [sys.executable, "-c", "import time; time.sleep(60)"], 1)
    parts.note("absent", "skipped: no such tool")
    assert (tmp_path / "build.txt").read_text() == "words\n"  # the second command was not run
    summary = parts.summary().splitlines()
    assert summary[1].endswith("FAILED with status 3") and "out of time" in summary[2]
    assert summary[-1] == "NOT PASSED: build, slow"
    assert "words" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_needs_a_gpu_says_so_in_a_sentence_and_fails():
    for arguments in (["bench.gpu"], ["bench", "--device", "cuda"]):
        done = subprocess.run(
            [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 1 and done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert "finds no" in done.stderr
