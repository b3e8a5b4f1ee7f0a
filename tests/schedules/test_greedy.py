"""GreedyLR against transformers' class, step by step, over random metrics."""

import copy
import pickle

import pytest
import torch
import transformers.optimization as peer

import fusedstep.hf as ours
from tests.support.schedule_cases import optimizer_with

OPTIONS = [
    {},
    {"patience": 2},
    {"patience": 1, "factor": 0.5, "min_lr": 0.1, "max_lr": 0.4},
    {"patience": 0, "factor": 0.5, "min_lr": [0.1, 0.05, 1e-5], "max_lr": [1.0, 0.2, 0.1]},
    {"patience": 1, "mode": "max", "threshold": 0.05},
    {"patience": 1, "threshold_mode": "rel", "threshold": 0.1},
    {"patience": 1, "mode": "max", "threshold_mode": "rel", "threshold": 0.01},
    {"patience": 1, "cooldown": 3, "warmup": 2},
    {"patience": 1, "smooth": True, "window_size": 4},
    {"patience": 0, "factor": 0.3, "min_lr": 0.2, "reset_start": 3, "smooth": True},
    {"patience": 0, "factor": 0.9, "eps": 0.02},
]
each_option = pytest.mark.parametrize("options", OPTIONS, ids=str)


def metrics(steps=120):
    """A noisy loss that falls, stays and rises."""
    noise = torch.randn(steps, generator=torch.Generator().manual_seed(0)).mul(0.3).tolist()
    trend = [*range(steps // 3, 0, -1), *[1] * (steps // 3), *range(1, steps // 3 + 1)]
    values = [t / 10 + n for t, n in zip(trend, noise, strict=True)]
    return values


@each_option
@pytest.mark.parametrize(
    "seen",
    [metrics(), [0.1] * 120, [-0.5 * k for k in range(120)], [*metrics()[:60], float("inf")]],
    ids=["noisy", "still", "falling", "bursting"],
)
def test_every_step_is_the_peers(options, seen):
    own = ours.get_greedy_schedule(optimizer_with(), **options)
    other = peer.get_greedy_schedule(optimizer_with(), **options)
    for metric in seen:
        own.step(metric)
        other.step(metric)
        assert own.state_dict() == other.state_dict()
        assert own.get_last_lr() == [group["lr"] for group in own.optimizer.param_groups]
    assert all(type(lr) is float for lr in own.get_last_lr())


def test_the_metrics_above_move_it_up_and_down_and_begin_again():
    """So the comparison covers all cases."""
    up = ours.GreedyLR(optimizer_with(), patience=1, factor=0.5)
    rates = []
    for metric in metrics():
        up.step(metric)
        rates.append(up.get_last_lr()[0])
    assert max(rates) > 0.5 and min(rates) < 0.5
    again = ours.GreedyLR(optimizer_with(), patience=0, factor=0.3, min_lr=0.2, reset_start=3)
    rates = []
    for _ in range(12):
        again.step(0.1)
        rates.append(again.get_last_lr()[0])
    assert rates.index(0.2) < len(rates) - rates[::-1].index(0.5)


@each_option
def test_a_tensor_lr_is_filled_and_stays_a_tensor(options):
    plain, tensor = optimizer_with(), optimizer_with(tensor=True)
    before = [group["lr"] for group in tensor.param_groups]
    schedules = [ours.GreedyLR(optimizer, **options) for optimizer in (plain, tensor)]
    for metric in metrics():
        for schedule in schedules:
            schedule.step(metric)
        assert schedules[0].get_last_lr() == schedules[1].get_last_lr()
        assert [lr.item() for lr in before] == schedules[0].get_last_lr()
    assert all(g["lr"] is lr for g, lr in zip(tensor.param_groups, before, strict=True))


@each_option
def test_a_resume_goes_on_as_it_was(options):
    seen = metrics()
    whole = ours.GreedyLR(optimizer_with(), **options)
    for metric in seen:
        whole.step(metric)
    for saved_by in (ours, peer):
        half = saved_by.GreedyLR(optimizer_with(), **options)
        for metric in seen[:50]:
            half.step(metric)
        loaded = ours.GreedyLR(optimizer_with())
        loaded.load_state_dict(copy.deepcopy(half.state_dict()))
        assert [g["lr"] for g in loaded.optimizer.param_groups] == half.get_last_lr()
        further = [loaded]
        if saved_by is ours:
            further.append(pickle.loads(pickle.dumps(half)))
            assert loaded.load_state_dict({"patience": loaded.patience}) is None  # a partial state
        for schedule in further:
            for metric in seen[50:]:
                schedule.step(metric)
            assert schedule.state_dict() == whole.state_dict()


def test_a_metric_that_is_no_number_is_forgotten_with_its_window():
    """In transformers the running sum stays nan, and every later metric counts as bad."""
    schedule = ours.GreedyLR(optimizer_with(), patience=0, smooth=True, window_size=3)
    for metric in (5.0, float("nan"), 4.0, 3.0, 2.0, 1.0):
        schedule.step(metric)
    assert schedule.best == 2.0


def test_a_saved_state_is_a_copy():
    schedule = ours.GreedyLR(optimizer_with(), patience=0, factor=0.5, smooth=True)
    state = schedule.state_dict()
    before = copy.deepcopy(state)
    for metric in metrics():
        schedule.step(metric)
    assert state == before


def test_it_says_what_it_does_when_asked_to(capsys):
    schedule = ours.GreedyLR(
        optimizer_with([0.5]), patience=0, factor=0.5, min_lr=0.25, verbose=True, reset_start=1
    )
    schedule.step(1.0, epoch=7)
    schedule.step(2.0)
    said = capsys.readouterr().out
    assert "Epoch 7: learning rate of group 0 up to 1.0000e+00." in said
    assert "Epoch 8: learning rate of group 0 down to 5.0000e-01." in said


def test_frameworks_step_it_with_the_metric():
    """Frameworks check for ReduceLROnPlateau; transformers' Trainer checks for its own class."""
    schedule = ours.GreedyLR(optimizer_with())
    assert isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau)


def test_a_metric_may_be_a_tensor_and_numbers_strings():
    schedule = ours.GreedyLR(optimizer_with(), patience="0", factor="0.5")
    schedule.step(torch.tensor(1.0))
    assert schedule.get_last_lr() == [1.0, 0.25, 6e-4]
