"""Every schedule of transformers.optimization, at every step, against transformers'."""

import copy
import inspect
import io
import pickle

import pytest
import torch
import transformers.optimization as peer

import fusedstep.hf as ours
import fusedstep.schedules
from tests.support.cases import ALWAYS_OURS
from tests.support.schedule_cases import (
    LENGTHS,
    LRS,
    POLYNOMIAL,
    SCHEDULE_CASES,
    optimizer_with,
    trace,
)

each_case = pytest.mark.parametrize("case", SCHEDULE_CASES, ids=str)
each_length = pytest.mark.parametrize(("warmup", "total"), LENGTHS)


def is_defined_there(thing):
    return getattr(thing, "__module__", None) == peer.__name__


PUBLIC = sorted(
    name
    for name, thing in vars(peer).items()
    if not name.startswith("_") and (is_defined_there(thing) or name.isupper())
)


@pytest.mark.parametrize("name", [*PUBLIC, "SchedulerType"])
def test_everything_public_of_the_peer_is_here_with_its_arguments(name):
    own, other = getattr(ours, name), getattr(peer, name)
    assert name in ours.__all__
    if name == "TYPE_TO_SCHEDULER_FUNCTION":
        assert {k.value: f.__name__ for k, f in own.items()} == {
            k.value: f.__name__ for k, f in other.items()
        }
    elif name == "SchedulerType":
        assert {k: m.value for k, m in own.__members__.items()} == {
            k: m.value for k, m in other.__members__.items()
        }
    else:

        def arguments(function):
            found = inspect.signature(function).parameters.values()
            return [(p.name, p.default, p.kind) for p in found if p.name not in ALWAYS_OURS]

        assert arguments(own) == arguments(other)


@each_case
@each_length
def test_every_value_is_the_peers(case, warmup, total):
    steps = 2 * total + 2
    seen = []
    for module in (ours, peer):
        schedule = case.make(module, optimizer_with(), warmup, total)
        if case.function == POLYNOMIAL and warmup == total and module is peer:
            # It divides by zero at step T, where ours has reached its end.
            values = trace(schedule, total - 1)
            schedule.optimizer.step()
            with pytest.raises(ZeroDivisionError):
                schedule.step()
            end = case.options.get("lr_end", 1e-7) / LRS[0]
            values += [[lr * end for lr in LRS]] * (steps + 1 - total)
        else:
            values = trace(schedule, steps)
        seen.append(values)
    assert all(type(lr) is float for values in seen[0] for lr in values)
    assert seen[0] == seen[1]


@each_case
def test_by_its_name_it_is_the_same_schedule(case):
    # transformers' Trainer passes the peer's enum.
    for name in (case.name, ours.SchedulerType(case.name), peer.SchedulerType(case.name)):
        further = dict(case.options)
        warmup, total = (3 if case.warms_up else None), (12 if case.ends else None)
        made = ours.get_scheduler(name, optimizer_with(), warmup, total, further)
        named = fusedstep.schedules.by_name(
            name,
            optimizer_with(),
            num_warmup_steps=warmup,
            num_training_steps=total,
            **further,
        )
        expected = trace(case.make(ours, optimizer_with(), 3, 12), 15)
        assert trace(made, 15) == expected
        assert trace(named, 15) == expected


@each_case
def test_a_tensor_lr_is_filled_with_the_same_values(case):
    optimizer = optimizer_with(tensor=True)
    tensors = [group["lr"] for group in optimizer.param_groups]
    schedule = case.make(ours, optimizer, 3, 12)
    expected = trace(case.make(ours, optimizer_with(), 3, 12), 26)
    for values in expected:
        assert schedule.get_last_lr() == values
        assert [lr.item() for lr in tensors] == values
        optimizer.step()
        schedule.step()
    assert all(
        g["lr"] is lr and g["initial_lr"] is not lr
        for g, lr in zip(optimizer.param_groups, tensors, strict=True)
    )


@each_case
def test_a_resume_goes_on_with_the_same_values(case):
    """From a state dict of ours or the peer, from a pickle, and from last_epoch."""
    expected = trace(case.make(ours, optimizer_with(), 3, 12), 20)

    def after_seven(module):
        schedule = case.make(module, optimizer_with(), 3, 12)
        trace(schedule, 7)
        return schedule

    for saved_by in (ours, peer):
        saved = after_seven(saved_by)
        state = torch.load(_buffer(saved.state_dict()), weights_only=True)
        for loaded_by in (ours, peer):
            optimizer = optimizer_with()
            schedule = case.make(loaded_by, optimizer, 3, 12)
            schedule.load_state_dict(copy.deepcopy(state))
            assert trace(schedule, 13)[1:] == expected[8:]
    again = pickle.loads(pickle.dumps(after_seven(ours)))
    assert trace(again, 13) == expected[7:]

    for tensor in (False, True):
        optimizer = optimizer_with(tensor=tensor)
        trace(case.make(ours, optimizer, 3, 12), 7)
        schedule = case.make(ours, optimizer, 3, 12, last_epoch=6)
        assert trace(schedule, 13) == expected[7:]


def _buffer(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


@each_case
def test_the_state_dict_has_the_peers_keys_and_types(case):
    own, other = (case.make(m, optimizer_with(), 3, 12).state_dict() for m in (ours, peer))
    assert own.keys() == other.keys()
    assert own["lr_lambdas"] == other["lr_lambdas"]
    assert [type(value) for value in own.values()] == [type(own[key]) for key in other]


def test_a_checkpoint_with_tensors_is_healed():
    """If lr is a tensor, the peer's base learning rates are tensors. Ours are numbers."""
    saved = peer.get_linear_schedule_with_warmup(optimizer_with(tensor=True), 3, 12)
    trace(saved, 4)
    assert isinstance(saved.state_dict()["base_lrs"][0], torch.Tensor)
    schedule = ours.get_linear_schedule_with_warmup(optimizer_with(tensor=True), 3, 12)
    schedule.load_state_dict(saved.state_dict())
    schedule.step()
    assert [type(lr) for lr in (*schedule.base_lrs, *schedule.get_last_lr())] == [float] * 6


def test_the_cosine_rises_again_after_the_last_step():
    """As in the peer, and as documented."""
    schedule = ours.get_cosine_schedule_with_warmup(optimizer_with([1.0]), 0, 10)
    values = [lr for (lr,) in trace(schedule, 20)]
    assert values[10] == 0.0 and values[20] == 1.0
    assert values[10:] == sorted(values[10:])
    assert "rise again" in " ".join(ours.get_cosine_schedule_with_warmup.__doc__.split())


def test_an_end_in_absolute_numbers_is_compared_with_the_lr_at_the_beginning():
    """An earlier schedule may have changed a tensor lr since the optimizer was made."""
    for name, options in ((POLYNOMIAL, {"lr_end": 0.05}), (
        "get_cosine_with_min_lr_schedule_with_warmup", {"min_lr": 0.05}
    )):  # fmt: skip
        ends = []
        for tensor in (False, True):
            optimizer = optimizer_with([0.5], tensor=tensor)
            make = getattr(ours, name)
            trace(make(optimizer, 0, 10, **options), 6)
            ends.append(trace(make(optimizer, 0, 10, last_epoch=5, **options), 4)[-1][0])
        assert ends == pytest.approx([0.05, 0.05])
