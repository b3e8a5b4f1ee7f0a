"""`python -m bench.scaling`: its files, and providers that fail, are slow or are stopped."""

import json
import os
import sys

import pytest

from bench import scaling
from bench.apart import Failed, one_by_one
from bench.clock import Outcome
from bench.command import names_of
from bench.devices import Cpu
from bench.lists import DTYPES
from bench.race import Options
from bench.scaling import AXES, Curve, measure, outcomes, power, runs_of
from tests.support.sweeps import sweep

OPTIONS = Options(rounds=1, budget=0.0, threads=1, device="cpu", extras=False)
PEERS = ("fusedstep", "torch-fused")


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command in this process, on a few small sizes. Returns its status and the file that
    it wrote."""
    monkeypatch.setattr(scaling, "QUICK_SIZES", {"elements": [16, 64], "tensors": [1, 3]})
    monkeypatch.setattr(Cpu, "copy_elements", 1 << 20)

    def command(*words):
        words = ("scaling", "--quick", "--out", str(tmp_path), "--rules", "adamw", *words)
        monkeypatch.setattr(sys, "argv", list(words))
        status = scaling.main()
        return status, json.loads((tmp_path / "scaling.json").read_text())

    return command


def a_curve(sizes=(16, 64, 256), names=PEERS, axis="elements"):
    return Curve("adamw", axis, "float32", names, sizes)


def test_every_size_of_both_axes_is_a_row_and_one_that_fails_says_why(run, tmp_path, monkeypatch):
    monkeypatch.setenv("FUSEDSTEP_BACKEND", "cuda")  # which cannot step on CPU tensors
    status, written = run("--providers", *PEERS)
    assert status == 1  # ours failed
    assert written["copy_bytes_a_second"] > 0 and not written["interrupted"]
    assert written["floor"] == Cpu.floor_is
    assert written["environment"]["command"].startswith("python -m bench.scaling --quick")
    rows = written["rows"]
    axes = {"tensors": (1, 3), "elements": (16, 64)}
    curves = [("float32", "tensors"), ("float32", "elements"), ("bfloat16", "elements")]
    assert [(row["dtype"], row["axis"], row["size"], row["provider"]) for row in rows] == [
        (dtype, axis, size, name) for dtype, axis in curves for size in axes[axis] for name in PEERS
    ]
    for row in rows:
        assert row["elements"] == row["size"] * (1024 if row["axis"] == "tensors" else 1)
        assert row["floor_ms"] > 0
        if row["provider"] == "fusedstep":
            assert row["ms"] is None and "cuda" in row["note"]
        else:
            assert row["ms"] > 0
    page = (tmp_path / "scaling.md").read_text()
    assert "| elements | floor | fusedstep, ms | torch-fused, ms | note |" in page
    assert "| 64 |" in page and "| - |" in page
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_run_keeps_the_rows_that_are_finished(run, monkeypatch):
    def interrupted(curves, options, copy, device):
        for outcome in outcomes(curves, options):
            curve, size = curves[0], curves[0].sizes[0]
            yield curve, size, scaling.rows_of(curve.race(size), outcome, copy, device)
            raise KeyboardInterrupt

    monkeypatch.setattr(scaling, "measure", interrupted)
    status, written = run("--providers", *PEERS)
    assert status == 130 and written["interrupted"]
    assert [(row["size"], row["provider"]) for row in written["rows"]] == [(1, n) for n in PEERS]
    assert all(row["ms"] > 0 for row in written["rows"])


@pytest.mark.parametrize(("slowest", "measured"), [(0.0, 1), (1e9, 3)])
def test_a_provider_ends_before_the_size_at_which_it_would_be_too_slow(
    monkeypatch, slowest, measured
):
    monkeypatch.setattr(scaling, "SLOWEST", slowest)
    found = list(outcomes([a_curve()], OPTIONS))
    assert [set(outcome.seconds) for outcome in found] == [
        set(PEERS) if number < measured else set() for number in range(3)
    ]
    for outcome in found[measured:]:
        for name in PEERS:
            assert "not measured: would take over 0 s, going by" in outcome.failures[name]
            assert outcome.failures[name].endswith("s with 16 elements")


def test_a_provider_that_ended_on_one_curve_is_measured_on_the_next(monkeypatch):
    monkeypatch.setattr(scaling, "SLOWEST", 0.0)
    found = list(outcomes([a_curve((16, 64)), a_curve((1, 2), axis="tensors")], OPTIONS))
    assert [bool(outcome.seconds) for outcome in found] == [True, False, True, False]


def test_sizes_that_a_process_did_not_come_to_say_why(monkeypatch):
    def dying(work, arguments, limit):
        yield Outcome(seconds={name: [1.0, 2.0, 3.0] for name in PEERS})
        raise Failed("failed: its process ended with status -9")

    monkeypatch.setattr(scaling, "one_by_one", dying)
    found = list(measure([a_curve()], OPTIONS, 1e9, Cpu()))
    assert [size for _, size, _ in found] == [16, 64, 256]
    first, *later = [[row.ms for row in rows] for _, _, rows in found]
    assert first == [2000.0] * 2 and later == [[None] * 2] * 2
    assert {row.note for _, _, rows in found[1:] for row in rows} == {
        "failed: its process ended with status -9"
    }


def two_and_then(end):
    yield os.getpid()
    yield os.getpid()
    if end == "die":
        os._exit(3)
    if end == "raise":
        raise ValueError("no more")


@pytest.mark.parametrize(("end", "said"), sweep([
    ("return", None), ("die", "failed: its process ended with status 3"),
    ("raise", "failed: ValueError: no more"),
], [("raise", "failed: ValueError: no more")]))  # fmt: skip
def test_what_was_finished_in_another_process_is_kept(end, said):
    seen, why = [], None
    try:
        for result in one_by_one(two_and_then, (end,)):
            seen.append(result)
    except Failed as error:
        why = str(error)
    assert len(seen) == 2 and seen[0] == seen[1] != os.getpid()
    assert why == said


@pytest.mark.parametrize(("option", "word", "choices"), [
    ("--rules", "adamv", ("adamw", "adafactor-torch")),
    ("--providers", "torch-fuse", ("torch-fused", "transformers")),
    ("--device", "gpu", ("cpu", "cuda")),
    ("--providers", "transformers", ("fusedstep, torch-fused",)),  # has no AdamW
])  # fmt: skip
def test_an_unknown_name_is_an_error_with_the_choices(run, capsys, option, word, choices):
    with pytest.raises(SystemExit) as stopped:
        run(option, word)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert word in said or "these rules have" in said
    assert all(choice in said for choice in choices)


def test_lists_have_the_size_that_the_axis_says():
    assert AXES["elements"](4**13).shapes == ((8192, 8192),)
    assert AXES["tensors"](4096).shapes == ((32, 32),) * 4096
    assert all(AXES["elements"](n).elements == n for n in scaling.SIZES["cuda"]["elements"])
    largest = AXES["elements"](scaling.SIZES["cpu"]["elements"][-1])
    assert largest.elements == 2**26 and largest.floor_bytes("adafactor", DTYPES["bfloat16"]) == (
        6 * 2**26
    )
    assert [power(size) for size in (1, 512, 1000, 1024, 4096)] == [
        *("1", "512", "1000", "2^10", "2^12")
    ]


def test_every_rule_has_a_curve_in_bfloat16_and_a_quick_look_one_process(monkeypatch):
    defaults = scaling.DEFAULT_PROVIDERS, scaling.DEFAULT_RULES
    asked = scaling.command_options("scaling", None, *defaults).parse_args([])
    for quick, processes in ((False, 8), (True, 1)):
        asked.quick = quick
        runs = runs_of(asked, scaling.QUICK_SIZES)
        assert len(runs) == processes
        curves = [curve for own in runs.values() for curve in own]
        assert len(curves) == 12
        assert {c.rule for c in curves if c.dtype == "bfloat16"} == set(scaling.DEFAULT_RULES)
    assert names_of("adamw", asked) == ("fusedstep", "torch-fused", "torch-foreach")
