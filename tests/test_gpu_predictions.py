"""Without a GPU: the predictions, the clock's pairing on any device, and what `make gpu` says."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the predictions read the kernels' work lists")
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # `bench` is not installed

from bench import predict, table  # noqa: E402
from bench.clock import Outcome, take_turns  # noqa: E402
from bench.devices import DEVICES, Sample  # noqa: E402
from bench.lists import DTYPES, LISTS  # noqa: E402
from bench.providers import RULES, Race  # noqa: E402

ROWS = predict.predictions()


def test_the_page_of_predictions_is_written(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    monkeypatch.setattr(sys, "argv", ["predict", "--out", str(page)])
    predict.main()
    said = page.read_text()
    assert "No accelerator was there" in said
    lines = [line.split("|") for line in said.splitlines() if line.startswith("| ")]
    measured = [line[12].strip() for line in lines if len(line) == 15]
    assert measured[0] == "measured ms" and measured.count("") == len(ROWS)


def test_predicted_bytes_of_adamw_are_the_floor_of_the_list():
    rows = [r for r in ROWS if r.rule == "adamw" and r.provider in ("fusedstep", "torch-fused")]
    assert len(rows) == 10
    for row in rows:
        assert row.moved == row.floor_bytes
        assert row.floor_bytes == row.chosen.floor_bytes("adamw", DTYPES[row.dtype])
        each = {"float32": 28, "bfloat16": 14}[row.dtype]
        assert row.moved == each * row.chosen.elements


def test_predicted_bytes_of_adafactor_are_the_floor_and_what_is_read_again():
    """Of matrices: the gradient once more, the parameter once more if its size scales the step, and
    at most two percent of sums."""
    chosen = LISTS["llama-1b"]
    for row in ROWS:
        if row.provider == "fusedstep" and row.rule != "adamw" and row.remark == "in phases":
            size = DTYPES[row.dtype].itemsize
            again = 1 if row.rule == predict.TRAINER else 2
            more = row.moved - row.floor_bytes - again * size * chosen.elements
            assert 0 <= more <= 0.02 * size * chosen.elements * 2


def test_the_lists_for_gpus_have_the_sizes_that_they_are_named_for():
    assert LISTS["1e9"].elements == 10**9 and len(LISTS["1e9"].shapes) == 10
    assert LISTS["2000 small"].elements == 2000 * 1024 and len(LISTS["2000 small"].shapes) == 2000
    llama = LISTS["llama-1b"]
    assert llama.elements == 1_235_814_400  # as Llama 3.2 1B's own parameters
    assert llama.shapes.count((2048,)) == 2 * 16 + 1
    for device in DEVICES.values():
        assert set(device.lists) <= set(LISTS)


class Fake:
    """A device whose steps say themselves how long they take, on the host too."""

    def sample(self, step, repeats):
        return Sample(*step())

    def watch(self):
        return lambda: True

    def cache_note(self, held_bytes):
        return "fits L2"

    legend = ""


def test_a_devices_own_times_and_the_hosts_reach_the_table():
    steps = {"fusedstep": lambda: (2e-3, 1e-3), "torch-fused": lambda: (4e-3, 3e-3)}
    outcome = take_turns(steps, 3, 1.0, Fake(), lambda *_: None)
    race = Race("adamw", LISTS["small"], "float32", tuple(steps))
    ours, peer = table.rows_of(race, outcome, 1e12, Fake())
    assert (ours.ms, ours.host_ms, peer.ratio, peer.note) == (2.0, 1.0, 2.0, "fits L2")
    assert "host ms" in table.text([ours, peer])
    assert "host ms" in table.markdown([ours, peer], "", Fake())


def test_the_table_of_a_cpu_has_no_column_for_the_host():
    race = Race("adamw", LISTS["small"], "float32", ("fusedstep",))
    rows = table.rows_of(race, Outcome({"fusedstep": [1e-3]}), 1e10, DEVICES["cpu"])
    assert "host ms" not in table.text(rows) + table.markdown(rows, "", DEVICES["cpu"])


def test_providers_for_gpus_are_not_raced_on_a_cpu():
    for rule in RULES.values():
        assert not any("capturable" in name for name in rule.providers_on("cpu"))
    assert "torch-capturable" in RULES["adamw"].providers_on("cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_needs_a_gpu_says_so_in_a_sentence_and_fails():
    for arguments in (["bench.gpu"], ["bench", "--device", "cuda"]):
        done = subprocess.run(
            [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 1 and done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert "finds no" in done.stderr
