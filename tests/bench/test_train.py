"""`python -m bench.train`: ours and the peer get the same input, a resume is bit-exact, and a
failure does not affect other runs."""

import json
import os
import sys
import time

import pytest
import torch

import bench.train
from bench.apart import Failed, in_processes
from bench.contestants import NUDGED, OPTIMIZERS, OURS, PAIR, PEER
from bench.settings import Settings
from bench.training import Saving, train
from fusedstep.schedules.draw import curves
from tests.support.sweeps import sweep

TEXT = "".join(chr(97 + (7 * k * k + k // 5) % 23) for k in range(3000))
TINY = {"width": 32, "layers": 1, "context": 8, "batch": 4, "evaluate_every": 2, "threads": 1}
TINY_OPTIONS = [
    word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))
]


@pytest.fixture(autouse=True)
def threads_of_the_other_tests():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs the command in this process. Returns its exit status, its output and its errors."""
    monkeypatch.setattr(bench.train, "repository_text", lambda: TEXT)

    def call(*words):
        words = [*map(str, words), "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["train", *words])
        capsys.readouterr()
        try:
            status = bench.train.main()
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def in_this_process(monkeypatch):
    def work_here(work, members):
        try:
            return [work(*arguments) for arguments in members]
        except (ValueError, RuntimeError) as error:
            raise Failed(f"failed: {error}") from error

    monkeypatch.setattr(bench.train, "in_processes", work_here)


def losses(contestant=OURS, **settings):
    return train(Settings(**{**TINY, **settings}), contestant, TEXT)["losses"]


def farthest(one, other):
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("model", ["gpt", "t5"])
def test_what_can_be_learned_is_learned(model):
    found = losses(model=model, steps=80, batch=16, schedule="constant")
    assert found[0] > 3.0
    assert sum(found[-5:]) / 5 < 0.8 * found[0]


# Ours and the peer.


@pytest.mark.parametrize("dtype", sweep(["float32", "float64"], ["float32"]))
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", ["gpt", "t5"])
def test_ours_differs_from_the_peer_by_roundings_only(model, optimizer, dtype, monkeypatch):
    # Near a ReLU's zero one rounding can switch a gradient on or off.
    monkeypatch.setattr(torch.nn, "ReLU", torch.nn.GELU)
    given = {"model": model, "optimizer": optimizer, "dtype": dtype, "steps": 20}
    ours, peer, nudged = (losses(name, **given) for name in (*PAIR, NUDGED))
    # The nudge happens once, but all 20 steps round. At worst all roundings have the same sign.
    rounding = max(farthest(nudged, peer), torch.finfo(getattr(torch, dtype)).eps * peer[0])
    assert ours[0] == peer[0]
    assert peer[-1] < peer[0]
    assert farthest(ours, peer) <= 20 * rounding


@pytest.mark.parametrize("model", ["gpt", "t5"])
def test_micro_batches_are_the_batch_in_pieces(model):
    given = {"model": model, "dtype": "float64", "steps": 5}
    whole = losses(**given)
    for pieces in (2, 4):
        # Five times, sums of 4 rows in another order: a few units of 1e-16.
        assert farthest(losses(micro_batches=pieces, **given), whole) < 1e-13


def test_the_fused_accumulator_adds_as_grad_does():
    given = {"micro_batches": 4, "steps": 5}
    assert losses(accumulate="float32", **given) == losses(**given)
    rounded = losses(dtype="bfloat16", **given)
    assert losses(dtype="bfloat16", accumulate="float32", **given) != rounded


def test_clipping_and_decay_and_dropout_reach_the_run():
    plain = losses(steps=4)
    for change in ({"clip": 0.01}, {"weight_decay": 5.0}, {"dropout": 0.5}, {"seed": 1}):
        assert losses(steps=4, **change) != plain


# Resuming.


def resumed(tmp_path, contestant, **settings):
    """The reports of an unbroken run of 6 steps, and of one that is resumed after the third."""
    own, saving = Settings(**{**TINY, "steps": 6, "dropout": 0.1, **settings}), Saving(tmp_path, 3)
    unbroken = train(own, contestant, TEXT, saving)
    torch.manual_seed(99)
    again = train(own, contestant, TEXT, resume=saving.path(own, contestant, 3))
    assert again["timed_steps"] < unbroken["timed_steps"]
    return unbroken, again


@pytest.mark.parametrize("contestant", PAIR)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_run_is_bitwise_the_unbroken_one(tmp_path, optimizer, contestant):
    unbroken, again = resumed(tmp_path, contestant, model="t5", optimizer=optimizer)
    for key in ("losses", "validation", "weights_sha256"):
        assert again[key] == unbroken[key]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_ours_resumes_bitwise_in_bfloat16(tmp_path, optimizer):
    unbroken, again = resumed(tmp_path, OURS, optimizer=optimizer, dtype="bfloat16")
    assert again["losses"] == unbroken["losses"]
    assert again["weights_sha256"] == unbroken["weights_sha256"]


@pytest.mark.parametrize("schedule", curves(6, 1))
def test_every_schedule_trains_and_resumes(tmp_path, schedule):
    given = {k: v for k, v in curves(6, 1)[schedule][0].items() if k != "num_warmup_steps"}
    given = tuple(f"{name}={value}" for name, value in given.items())
    unbroken, again = resumed(tmp_path, OURS, schedule=schedule, schedule_settings=given)
    assert again["weights_sha256"] == unbroken["weights_sha256"]


def test_a_checkpoint_of_another_text_is_refused(tmp_path):
    own, saving = Settings(**TINY, steps=2), Saving(tmp_path, 1)
    train(own, OURS, TEXT, saving)
    with pytest.raises(ValueError, match="text is not what it was"):
        train(own, OURS, TEXT[1:], resume=saving.path(own, OURS, 1))
    with pytest.raises(ValueError, match="nothing is left to train"):
        train(own, OURS, TEXT, resume=saving.path(own, OURS, 2))


# The command.


def test_a_run_is_saved_and_resumed_by_command(command, in_this_process, tmp_path):
    saved, numbers = tmp_path / "saved", tmp_path / "out" / "gpt-adafactor.json"
    words = ["--optimizer", "adafactor", "--steps", 4, "--save", saved, "--save-every", 2]
    status, table, _ = command(*words, *TINY_OPTIONS)
    unbroken = json.loads(numbers.read_text())
    assert status == 0
    assert sorted(path.name for path in saved.iterdir()) == [
        f"gpt-adafactor-{who}-{step}.pt" for who in PAIR for step in (2, 4)
    ]
    files = [saved / f"gpt-adafactor-{who}-2.pt" for who in PAIR]
    status, again, _ = command("--resume", *files)
    assert status == 0
    resumed = json.loads(numbers.read_text())
    assert resumed["comparisons"] == unbroken["comparisons"]
    for who in PAIR:
        for key in ("losses", "validation", "weights_sha256"):
            assert resumed["runs"][who][key] == unbroken["runs"][who][key]
    said = "the losses of ours and of peer differ by at most"
    assert said in table and said in again
    assert numbers.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_all_writes_one_table(command, in_this_process, tmp_path):
    status, table, _ = command("--all", "--steps", 2, *TINY_OPTIONS)
    assert status == 0
    assert (tmp_path / "out" / "train.md").read_text() + "\n" == table
    assert "| gpt-adamw, linear | ours: fusedstep.optim.AdamW |" in table
    assert "| t5-hf-adafactor, AdafactorSchedule | peer: transformers.optimization" in table


@pytest.mark.parametrize(("words", "said"), [
    (["--model", "bert"], "model should be one of gpt, t5 but is: bert"),
    (["--optimizer", "adamv"], "but is: adamv (did you mean adamw?)"),
    (["--schedule", "cosinus"], "but is: cosinus (did you mean cosine?)"),
    (["--dtype", "half"], "dtype should be one of float32, bfloat16"),
    (["--device", "tpu"], "device should be one of cpu, cuda but is: tpu"),
    (["--accumulate", "no"], "accumulate should be one of grad, float32 but is: no"),
    (["--optimizer", "hf-adafactor", "--schedule", "linear"], "leave out lr and schedule"),
    (["--optimizer", "hf-adafactor", "--lr", "1"], "or take hf-adafactor-trainer"),
    (["--contestants", "theirs"], "invalid choice: 'theirs'"),
    (["--schedule-settings", "power"], "should be as in power=2 but holds: 'power'"),
    (["--steps", "0"], "steps should be 1 or more but is: 0"),
    (["--width", "40"], "width should be a multiple of 32"),
    (["--micro-batches", "3"], "batch=16 cannot be cut into micro_batches=3"),
    (["--dropout", "1"], "dropout should be from 0 to below 1"),
    (["--clip", "nan"], "clip should be above 0 but is: nan"),
    (["--weight-decay", "-1"], "weight_decay should be 0 or more but is: -1.0"),
    (["--threads", "-1"], "threads should be 0 (torch's choice) or more"),
    (["--save", "here"], "--save and --save-every belong together"),
    (["--save", "here", "--save-every", "0"], "--save-every should be 1 or more"),
    (["--all", "--model", "t5"], "--all chooses its own model"),
    (["--resume", "/no/such/file.pt"], "No such file"),
    (["--resume", __file__], "is no checkpoint of a training run"),
    (["--resume", __file__, "--width", "64", "--ddp"], "leave out width, ddp"),
    (["--ddp", "--batch", "6", "--micro-batches", "2"], "should be a multiple of 4"),
    (["--ddp", "--accumulate", "float32"], "leave out accumulate=float32"),
    (["--ddp", "--save", "here", "--save-every", "1"], "leave out save and resume"),
])  # fmt: skip
def test_a_wrong_argument_is_an_error_of_one_line(command, words, said):
    status, _, complaint = command(*words)
    assert status == 2
    assert said in complaint


def test_a_context_longer_than_the_text_says_so():
    with pytest.raises(ValueError, match=r"takes 401 characters in a row.* has 300"):
        losses(context=400)


def test_a_loss_that_is_no_number_ends_the_run():
    with pytest.raises(ArithmeticError, match="take a smaller lr"):
        losses(lr=1e38, clip=float("inf"), steps=9)


@pytest.mark.slow
def test_a_run_that_fails_is_shown_and_the_other_is_kept(command, monkeypatch, tmp_path):
    monkeypatch.setenv("FUSEDSTEP_BACKEND", "cuda")  # which cannot step on CPU tensors
    status, table, _ = command("--steps", 3, *TINY_OPTIONS)
    assert status == 1
    runs = json.loads((tmp_path / "out" / "gpt-adamw.json").read_text())["runs"]
    assert runs[OURS]["failed"].startswith("failed: ") and runs[OURS]["failed"] in table
    assert len(runs[PEER]["losses"]) == 3
    assert "peer: torch.optim.AdamW | 3." in table


def test_an_interrupted_run_keeps_what_is_finished(command, in_this_process, monkeypatch, tmp_path):
    work_here, seen = bench.train.in_processes, []

    def interrupted_at_the_second(work, members):
        seen.append(members)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return work_here(work, members)

    monkeypatch.setattr(bench.train, "in_processes", interrupted_at_the_second)
    status, table, complaint = command("--steps", 2, *TINY_OPTIONS)
    assert status == 130
    assert "only finished runs are kept" in complaint
    report = json.loads((tmp_path / "out" / "gpt-adamw.json").read_text())
    assert report["interrupted"] and list(report["runs"]) == [OURS]
    assert "ours: fusedstep.optim.AdamW" in table and "peer:" not in table


# Processes.


def die_or_wait(status):
    if status:
        os._exit(status)
    time.sleep(60)


def test_a_process_that_dies_ends_those_that_wait_for_it():
    with pytest.raises(Failed, match="its process ended with status 3"):
        in_processes(die_or_wait, [(0,), (3,)])
    with pytest.raises(Failed, match="given up after 0 s"):
        in_processes(die_or_wait, [(0,)], limit=0.1)


@pytest.mark.slow
def test_two_processes_train_as_one_does():
    own = Settings(**TINY, steps=6, micro_batches=2, dtype="float64")
    report = bench.train.run(own, [OURS], ddp=True, text=TEXT)
    one, two = report["runs"].values()
    assert two["processes"] == 2 and two["processes_agree"]
    # The mean of two halves is a sum in another order: a few units of 1e-16 each step.
    assert farthest(one["losses"], two["losses"]) < 1e-13
    [pair] = report["comparisons"]
    assert pair["of"] == ["ours, 2 processes", "ours"]
    assert pair["largest_loss_difference"] == farthest(one["losses"], two["losses"])
    assert one["peak_bytes"] > one["bytes_before"] > 0
