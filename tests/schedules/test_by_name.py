"""Schedules by the names that training configs use, torch's included; warm-ups; one optimizer for
each layer."""

import copy
import enum

import pytest
import torch
import transformers
import transformers.optimization as peer
from torch.optim import lr_scheduler as torch_schedules
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

import fusedstep.hf
from fusedstep.schedules import SCHEDULES, Schedule, SchedulerType, WarmUp, by_name, formulas
from tests.support.schedule_cases import optimizer_with, trace

CYCLE = {"cycle_momentum": False}
# (name, what a config gives besides 20 steps and no warm-up, the peer with its arguments).
CONFIGS = [
    ("Constant", {}, peer.get_constant_schedule, {}),
    ("ConstantWithWarmup", {}, peer.get_constant_schedule_with_warmup, {"num_warmup_steps": 4}),
    ("CosineAnnealingLR", {"eta_min": 0.1}, torch_schedules.CosineAnnealingLR,
     {"T_max": 20, "eta_min": 0.1}),
    ("CosineAnnealingLR", {"T_max": 7}, torch_schedules.CosineAnnealingLR, {"T_max": 7}),
    ("CosineAnnealingWarmRestarts", {"T_0": "5"}, torch_schedules.CosineAnnealingWarmRestarts,
     {"T_0": 5}),
    ("CosineWithHardRestartsWithWarmup", {"num_cycles": 2},
     peer.get_cosine_with_hard_restarts_schedule_with_warmup,
     {"num_warmup_steps": 4, "num_training_steps": 20, "num_cycles": 2}),
    ("CosineWithWarmup", {}, peer.get_cosine_schedule_with_warmup,
     {"num_warmup_steps": 4, "num_training_steps": 20}),
    ("CyclicLR", {"base_lr": 0.1, "max_lr": "1e0", **CYCLE}, torch_schedules.CyclicLR,
     {"base_lr": 0.1, "max_lr": 1.0, **CYCLE}),
    ("ExponentialLR", {"gamma": "0.9"}, torch_schedules.ExponentialLR, {"gamma": 0.9}),
    ("InverseSQRT", {"timescale": 8}, peer.get_inverse_sqrt_schedule,
     {"num_warmup_steps": 4, "timescale": 8}),
    ("LinearLR", {}, torch_schedules.LinearLR, {}),
    ("LinearWithWarmup", {}, peer.get_linear_schedule_with_warmup,
     {"num_warmup_steps": 4, "num_training_steps": 20}),
    ("OneCycleLR", {"max_lr": 1.0, **CYCLE}, torch_schedules.OneCycleLR,
     {"max_lr": 1.0, "total_steps": 20, **CYCLE}),
    ("OneCycleLR", {"max_lr": 1.0, "total_steps": 30, **CYCLE}, torch_schedules.OneCycleLR,
     {"max_lr": 1.0, "total_steps": 30, **CYCLE}),
    ("PolynomialDecayWithWarmup", {"power": 2.0}, peer.get_polynomial_decay_schedule_with_warmup,
     {"num_warmup_steps": 4, "num_training_steps": 20, "power": 2.0}),
    ("StepLR", {"step_size": 3}, torch_schedules.StepLR, {"step_size": 3}),
]  # fmt: skip
each_config = pytest.mark.parametrize(
    ("name", "said", "make", "arguments"),
    CONFIGS,
    ids=[f"{c[0]}-{i}" for i, c in enumerate(CONFIGS)],
)


def test_all_names_are_here():
    ours = [name for name in SCHEDULES if name not in list(peer.SchedulerType)]
    assert ours == sorted({name for name, *_ in CONFIGS})
    assert set(SCHEDULES) == {*ours, *(kind.value for kind in peer.SchedulerType)}


@each_config
@pytest.mark.parametrize("run", [
    {"num_training_steps": 20}, {"epochs": 4, "steps_per_epoch": 5}, {"num_training_steps": "20"},
], ids=str)  # fmt: skip
def test_a_config_is_the_peer_with_its_arguments(name, said, make, arguments, run):
    warmup = {"num_warmup_steps": 4} if "num_warmup_steps" in arguments else {}
    own = by_name(name, optimizer_with(), **run, **warmup, **said)
    assert trace(own, 19) == trace(make(optimizer_with(), **arguments), 19)
    if make.__module__.startswith("torch"):
        assert type(own) is make


@pytest.mark.parametrize(
    ("name", "said"),
    [(name, said) for name, said, _, given in CONFIGS if "num_warmup_steps" not in given],
)
def test_a_warm_up_is_never_ignored(name, said):
    """A schedule without a warm-up starts after one, and its length counts from there."""
    own = by_name(name, optimizer_with(), num_training_steps=20, num_warmup_steps=4, **said)
    after = by_name(name, optimizer_with(), num_training_steps=16, **said)
    peak = after.get_last_lr()
    expected = [[lr * step / 4 for lr in peak] for step in range(4)] + trace(after, 15)
    assert trace(own, 19) == expected


@pytest.mark.parametrize(("said", "steps"), [
    ({"num_warmup_steps": 3}, 3), ({"num_warmup_steps": 3.7}, 3), ({"num_warmup_steps": 0.15}, 5),
    ({"warmup_ratio": 0.15}, 5), ({"warmup_ratio": "0.5"}, 15), ({"warmup_ratio": 1}, 30),
    ({"warmup_ratio": 0.0}, 0), ({"num_warmup_steps": 0}, 0), ({"num_warmup_steps": 1}, 1),
])  # fmt: skip
def test_a_share_of_the_run_is_counted_in_steps(said, steps):
    """As in transformers' Trainer: 1 and more are steps, and smaller shares are rounded up."""
    own = by_name("constant_with_warmup", optimizer_with([1.0]), num_training_steps=30, **said)
    values = [lr for (lr,) in trace(own, 32)]
    assert values.index(1.0) == steps
    if 0 < steps < 30:
        arguments = transformers.TrainingArguments(
            warmup_steps=float(next(iter(said.values()))), output_dir="unused", use_cpu=True
        )
        assert arguments.get_warmup_steps(30) == steps


def test_words_of_a_command_line_are_what_they_say():
    made = by_name(
        "OneCycleLR", optimizer_with(), max_lr="1", total_steps="9", cycle_momentum="False",
        three_phase="true", anneal_strategy="linear",
    )  # fmt: skip
    assert made.cycle_momentum is False and len(made._schedule_phases) == 3
    named = by_name("inverse_sqrt", optimizer_with(), num_warmup_steps="0", timescale="none")
    assert named.get_last_lr()[0] == 0.5


def test_members_of_any_enum_are_names():
    class Config(str, enum.Enum):
        STEP = "StepLR"

    assert by_name(Config.STEP, optimizer_with(), step_size=3).step_size == 3
    assert isinstance(by_name(SchedulerType.CONSTANT, optimizer_with()), Schedule)
    assert isinstance(by_name(peer.SchedulerType.CONSTANT, optimizer_with()), Schedule)


def test_our_enum_is_a_name_for_transformers_too():
    assert peer.SchedulerType(SchedulerType.COSINE) is peer.SchedulerType.COSINE
    assert {"cosine": 1}[SchedulerType.COSINE] == 1


def test_what_follows_a_metric_takes_it():
    for name in ("reduce_lr_on_plateau", "greedy"):
        own = by_name(name, optimizer_with(), num_training_steps=9, patience=0, factor="0.5")
        own.step(1.0)
        own.step(2.0)
        expected = {"reduce_lr_on_plateau": 0.5 * 3e-4, "greedy": 2 * 3e-4}  # down and up
        assert own.get_last_lr()[2] == expected[name]


@pytest.mark.parametrize("power", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("tensor", [False, True])
def test_a_polynomial_warm_up_goes_before_any_schedule(power, tensor):
    makers = [
        lambda o: torch_schedules.StepLR(o, 2, gamma=0.5),
        lambda o: torch_schedules.CosineAnnealingLR(o, 7),
        lambda o: torch_schedules.OneCycleLR(o, 1.0, total_steps=30, cycle_momentum=False),
        lambda o: Schedule(o, lambda step: 0.9**step),
        lambda o: torch_schedules.SequentialLR(
            o,
            [torch_schedules.ConstantLR(o, 0.5), torch_schedules.ExponentialLR(o, 0.9)],
            milestones=[3],
        ),
    ]
    for make in makers:
        alone = trace(make(optimizer_with(tensor=tensor)), 12)
        own = trace(WarmUp(make(optimizer_with(tensor=tensor)), 5, power), 17)
        ramp = [[lr * (step / 5) ** power for lr in alone[0]] for step in range(5)]
        assert own[:5] == ramp
        assert own[5:] == alone


def test_a_warm_up_before_a_schedule_that_follows_a_metric():
    own = WarmUp(
        torch_schedules.ReduceLROnPlateau(optimizer_with([0.5]), factor=0.5, patience=0), 2
    )
    seen = [own.get_last_lr()]
    for metric in (9.0, 8.0, 3.0, 4.0):  # the first two belong to the warm-up
        own.step(metric)
        seen.append(own.get_last_lr())
    assert seen == [[0.0], [0.25], [0.5], [0.5], [0.25]]


def test_a_warm_up_resumes():
    def make():
        return WarmUp(torch_schedules.CosineAnnealingLR(optimizer_with(), 7), 5, 2.0)

    expected = trace(make(), 15)
    for steps in (2, 5, 9):
        saved = make()
        trace(saved, steps)
        loaded = make()
        loaded.load_state_dict(copy.deepcopy(saved.state_dict()))
        for group, other in zip(
            loaded.optimizer.param_groups, saved.optimizer.param_groups, strict=True
        ):
            group["lr"] = other["lr"]  # as from the optimizer's checkpoint
        assert trace(loaded, 15 - steps) == expected[steps:]


def test_optimizers_of_single_layers_have_schedules_of_their_own():
    """transformers' placeholder for optimizers that step in hooks of the backward pass."""
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    optimizers = {p: torch.optim.SGD([p], lr=0.5) for p in params}
    for param, optimizer in optimizers.items():
        param.register_post_accumulate_grad_hook(lambda _, own=optimizer: own.step())
    stand_in = LayerWiseDummyOptimizer(optimizer_dict=optimizers, lr=0.5)
    schedule = fusedstep.hf.get_scheduler("linear", stand_in, 2, 8)
    expected = [
        0.5 * formulas.linear(s, num_warmup_steps=2, num_training_steps=8) for s in range(9)
    ]
    for step in range(5):
        assert schedule.get_last_lr() == [expected[step]] * 3
        sum(p.sum() for p in params).backward()
        schedule.step()
    state = schedule.state_dict()
    again = fusedstep.hf.get_scheduler("linear", stand_in, 2, 8)
    again.load_state_dict(state)
    assert again.get_last_lr() == [expected[5]] * 3
    with pytest.raises(ValueError, match=r"holds 2 schedules, but there are 3 parameters"):
        again.load_state_dict({"schedules": state["schedules"][:2]})
