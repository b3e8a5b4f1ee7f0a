"""Schedules with others: in torch's sequences and chains, in accelerate, on shared tensors, on
optimizers that grow, and loaded from checkpoints of others."""

import copy

import accelerate
import pytest
import torch
import transformers.optimization as peer
from torch.optim import lr_scheduler as torch_schedules

import fusedstep.hf as ours
from fusedstep.optim import AdamW, param_groups
from fusedstep.schedules import Schedule, WarmUp
from tests.support.schedule_cases import POLYNOMIAL, optimizer_with, trace

each_lr = pytest.mark.parametrize("tensor", [False, True], ids=["number", "tensor"])


def numbers(values):
    return [[float(lr) for lr in at_step] for at_step in values]


@each_lr
def test_in_a_sequence_values_are_the_peers(tensor):
    seen = []
    for module in (ours, peer):  # the peer's tensors alias its base learning rates on older torch
        optimizer = optimizer_with(tensor=tensor and module is ours)
        parts = [
            module.get_constant_schedule_with_warmup(optimizer, 2),
            module.get_cosine_schedule_with_warmup(optimizer, 0, 6),
            torch_schedules.ExponentialLR(optimizer, 0.5),
        ]
        sequence = torch_schedules.SequentialLR(optimizer, parts, milestones=[3, 7])
        seen.append(trace(sequence, 10))
        if module is ours:
            assert all(type(lr) is float for part in parts[:2] for lr in part.get_last_lr())
    for own, other in zip(*map(numbers, seen), strict=True):
        assert own == pytest.approx(other, rel=1e-6)


@each_lr
@pytest.mark.parametrize("place", [0, 1])
def test_a_warm_up_can_be_anywhere_in_a_sequence(place, tensor):
    optimizer = optimizer_with([0.5], tensor=tensor)
    parts = [
        WarmUp(torch_schedules.StepLR(optimizer, 2, gamma=0.5), 2),
        torch_schedules.ConstantLR(optimizer, 0.25, total_iters=99),
    ]
    sequence = torch_schedules.SequentialLR(optimizer, parts[:: -1 if place else 1], milestones=[4])
    warm, other = [0.0, 0.25, 0.5, 0.5], [0.125] * 4
    values = [lr for (lr,) in numbers(trace(sequence, 7))]
    assert values == (other + warm if place else warm + other)


@each_lr
def test_a_warm_up_goes_before_a_chain(tensor):
    optimizer = optimizer_with([0.5], tensor=tensor)
    chain = torch_schedules.ChainedScheduler(
        [torch_schedules.ConstantLR(optimizer, 0.5, 2), Schedule(optimizer, lambda step: 1.0)]
    )
    values = [lr for (lr,) in numbers(trace(WarmUp(chain, 2), 3))]
    assert values[:3] == [0.0, 0.25, 0.5]


def test_each_function_is_asked_once_a_step():
    asked = []
    optimizer = optimizer_with()
    trace(Schedule(optimizer, lambda step: asked.append(step) or 1.0), 3)
    assert asked == [0, 1, 2, 3]


def test_a_warning_of_torchs_points_where_it_does_for_its_own():
    """Newer versions point at the caller."""
    places = []
    for schedule in (
        ours.get_linear_schedule_with_warmup(optimizer_with(), 0, 10),
        torch_schedules.LambdaLR(optimizer_with(), lambda step: 1.0),
    ):
        with pytest.warns(UserWarning, match=r"before `optimizer.step") as seen:
            schedule.step()
        places.append(seen[0].filename)
    assert places[0] == places[1]


@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_tensor_in_two_groups_is_two_where_they_differ(shape):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    schedules = [
        (lambda opt: Schedule(opt, [lambda s: 1.0 / (1 + s), lambda s: 0.5]), None),
        (lambda opt: ours.GreedyLR(opt, patience=0, factor=0.5, min_lr=[0.4, 0.01]), 9.0),
    ]
    for make, metric in schedules:
        rates = []
        for lr in (torch.full(shape, 0.5, dtype=torch.float64), 0.5):
            optimizer = AdamW(param_groups(model, 0.1), lr=lr)
            schedule = make(optimizer)
            for _ in range(3):
                optimizer.step()
                schedule.step(*([] if metric is None else [metric]))
            assert schedule.get_last_lr() == [float(g["lr"]) for g in optimizer.param_groups]
            rates.append(schedule.get_last_lr())
        assert rates[0] == rates[1] and rates[0][0] != rates[0][1]


def test_one_tensor_in_two_groups_stays_one_where_they_agree():
    """A captured graph, or the code that made the tensor, may still read it."""
    lr = torch.tensor(0.5)
    optimizer = AdamW(param_groups(torch.nn.Linear(2, 2), 0.1), lr=lr)
    ours.get_linear_schedule_with_warmup(optimizer, 2, 10)
    assert all(group["lr"] is lr for group in optimizer.param_groups) and lr == 0.0
    assert optimizer.defaults["lr"] == 0.5  # a group that is added later starts with it


def test_a_schedule_after_a_load_knows_the_learning_rate_of_the_beginning():
    optimizer = optimizer_with([0.5], tensor=True)
    trace(ours.get_linear_schedule_with_warmup(optimizer, 3, 10), 2)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    schedule = getattr(ours, POLYNOMIAL)(optimizer, 3, 10, lr_end=0.05, last_epoch=4)
    assert trace(schedule, 5)[-1] == [pytest.approx(0.05)]


def test_an_optimizer_that_grew_needs_a_new_schedule():
    for make in (
        lambda opt: ours.get_linear_schedule_with_warmup(opt, 0, 10),
        lambda opt: Schedule(opt, [lambda step: 1.0]),
    ):
        optimizer = optimizer_with([0.5])
        schedule = make(optimizer)
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
        optimizer.step()
        said = r"made for 1 group\(s\), but the optimizer has 2 now.*'initial_lr'.*last_epoch=0"
        with pytest.raises(ValueError, match=said):
            schedule.step()
        optimizer.param_groups[1]["initial_lr"] = 0.25  # as the error says
        again = ours.get_linear_schedule_with_warmup(optimizer, 0, 10, last_epoch=0)
        assert again.get_last_lr() == [0.9 * 0.5, 0.9 * 0.25]


def test_a_warm_up_refuses_what_it_would_hide_or_skip():
    with pytest.raises(ValueError, match=r"begins with a learning rate of 0"):
        WarmUp(ours.get_linear_schedule_with_warmup(optimizer_with(), 3, 9), 3)
    saved = WarmUp(torch_schedules.StepLR(optimizer_with(), 2), 10)
    for other in (
        WarmUp(torch_schedules.StepLR(optimizer_with(), 2), 3),
        WarmUp(torch_schedules.StepLR(optimizer_with(), 2), 10, power=2.0),
    ):
        with pytest.raises(ValueError, match=r"the state has (warmup_steps=10|power=1\.0)"):
            other.load_state_dict(saved.state_dict())


@pytest.mark.parametrize("smooth_saved", [False, True])
@pytest.mark.parametrize("smooth_loaded", [False, True])
def test_greedy_smooths_as_the_checkpoint_does(smooth_saved, smooth_loaded):
    states = []
    for module in (ours, peer):
        saved = module.GreedyLR(optimizer_with(), patience=0, smooth=smooth_saved, window_size=3)
        loaded = module.GreedyLR(optimizer_with(), patience=0, smooth=smooth_loaded, window_size=3)
        for metric in (3.0, 2.0):
            saved.step(metric)
        loaded.load_state_dict(saved.state_dict())
        for metric in (9.0, 1.0, 0.5):
            loaded.step(metric)
        states.append(loaded.state_dict())
    assert states[0] == states[1]


def test_greedy_begins_again_from_numbers_though_a_checkpoint_has_tensors():
    saved = peer.GreedyLR(optimizer_with([1.0], tensor=True), patience=0, factor=0.5, min_lr=0.1)
    schedule = ours.GreedyLR(optimizer_with([1.0]), reset_start=2)
    schedule.load_state_dict({**saved.state_dict(), "reset_start": 2, "reset_start_original": 2})
    rates = []
    for _ in range(14):
        schedule.step(1.0)
        rates += schedule.get_last_lr()
    assert all(type(lr) is float for lr in rates)
    assert rates[rates.index(0.1) :].count(1.0) > 0


def test_greedy_refuses_the_state_of_other_groups_before_it_changes():
    schedule = ours.GreedyLR(optimizer_with())
    before = schedule.state_dict()
    with pytest.raises(ValueError, match=r"min_lrs for 1 groups, but the optimizer has 3"):
        schedule.load_state_dict(ours.GreedyLR(optimizer_with([0.5]), patience=99).state_dict())
    assert schedule.state_dict() == before


def test_greedy_goes_on_from_what_somebody_else_set():
    for tensor in (False, True):
        schedule = ours.GreedyLR(optimizer_with([0.5], tensor=tensor), patience=0, factor=0.5)
        group = schedule.optimizer.param_groups[0]
        group["lr"] = group["lr"] * 0 + 0.25
        schedule.step(1.0)
        assert schedule.get_last_lr() == [0.5]


def test_a_rounded_tensor_does_not_change_what_greedy_sets():
    plain = ours.GreedyLR(optimizer_with([0.3]), patience=0, factor=0.9)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=torch.tensor(0.3))
    rounded = ours.GreedyLR(optimizer, patience=0, factor=0.9)
    rounded._last_lr = rounded._init_lrs = [0.3]  # the tensor holds another number
    for metric in (5.0, 4.0, 6.0, 3.0):
        plain.step(metric)
        rounded.step(metric)
    assert rounded.get_last_lr() == plain.get_last_lr()


def test_single_layers_do_not_follow_a_metric():
    param = torch.nn.Parameter(torch.ones(2))
    stand_in = torch.optim.SGD([param], lr=0.5)
    stand_in.optimizer_dict = {param: stand_in}
    with pytest.raises(ValueError, match=r"'greedy' follows a metric"):
        ours.get_scheduler("greedy", stand_in)


@pytest.mark.parametrize("name", ["linear", "greedy", "OneCycleLR"])
def test_accelerate_steps_them_as_it_steps_torchs(name):
    params = [torch.nn.Parameter(torch.ones(2))]
    optimizer = AdamW(params, lr=0.5)
    if name == "linear":
        schedule = ours.get_linear_schedule_with_warmup(optimizer, 2, 8)
    elif name == "greedy":
        schedule = ours.GreedyLR(optimizer, patience=0, factor=0.5)
    else:
        schedule = WarmUp(torch_schedules.OneCycleLR(optimizer, 1.0, total_steps=2), 2)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    own_optimizer, own_schedule = accelerator.prepare(optimizer, schedule)
    rates = []
    for step in range(8):
        with accelerator.accumulate(torch.nn.Linear(1, 1)):
            accelerator.backward(params[0].sum())
            own_optimizer.step()
            own_schedule.step(*([1.0 + step] if name == "greedy" else []))
            own_optimizer.zero_grad()
        rates += own_schedule.get_last_lr()
    assert len(set(rates)) > 2


@pytest.mark.parametrize("steps", [2, 7])
def test_a_warm_up_around_a_schedule_that_follows_a_metric_goes_on_as_it_was(steps):
    for make in (
        lambda opt: ours.GreedyLR(opt, patience=0, factor=0.5),
        lambda opt: torch_schedules.ReduceLROnPlateau(opt, patience=0, factor=0.5),
    ):
        optimizer = optimizer_with([0.5])
        schedule = WarmUp(make(optimizer), 4)
        for _ in range(steps):
            optimizer.step()
            schedule.step(1.0)
        again = optimizer_with([0.5])
        resumed = WarmUp(make(again), 4)
        again.load_state_dict(optimizer.state_dict())
        resumed.load_state_dict(schedule.state_dict())
        assert again.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        for metric in (3.0, 1.0, 2.0, 2.0, 5.0):
            schedule.step(metric)
            resumed.step(metric)
            assert again.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_a_warm_up_whose_turn_has_not_come_leaves_the_learning_rate_alone():
    def make():
        optimizer = optimizer_with([0.5])
        parts = [
            torch_schedules.ConstantLR(optimizer, 0.5, total_iters=99),
            WarmUp(torch_schedules.StepLR(optimizer, 30), 4),
        ]
        return torch_schedules.SequentialLR(optimizer, parts, milestones=[5])

    expected = numbers(trace(make(), 12))
    saved, again = make(), make()
    trace(saved, 3)
    again.optimizer.load_state_dict(saved.optimizer.state_dict())
    again.load_state_dict(saved.state_dict())
    assert again.optimizer.param_groups[0]["lr"] == 0.25
    assert numbers(trace(again, 9)) == expected[3:]


def test_schedules_that_set_every_group_say_that_there_are_more():
    def steps(schedule, *metrics):
        new = torch.nn.Parameter(torch.zeros(1))
        schedule.optimizer.add_param_group({"params": [new]})
        for _ in range(3):
            schedule.step(*metrics)

    greedy = ours.GreedyLR(optimizer_with([0.5]), patience=0, factor=0.5)
    with pytest.raises(ValueError, match=r"GreedyLR was made for 1 group\(s\).*has 2 now"):
        steps(greedy, 1.0)
    with pytest.raises(ValueError, match=r"WarmUp was made for 1 group\(s\).*has 2 now"):
        steps(WarmUp(torch_schedules.StepLR(optimizer_with([0.5]), 2), 5))


def test_a_warm_up_jumps_to_no_step():
    schedule = WarmUp(torch_schedules.StepLR(optimizer_with([0.5]), 2), 5)
    with pytest.raises(ValueError, match=r"WarmUp: StepLR is no ReduceLROnPlateau .*leave out 7"):
        schedule.step(7)
    assert schedule.get_last_lr() == [0.0]
