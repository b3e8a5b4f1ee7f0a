"""Errors of schedules name the argument, the schedule and the remedy."""

import pytest
import torch
import transformers.optimization as peer

import fusedstep.hf as ours
from fusedstep.schedules import Schedule, WarmUp, by_name
from tests.support.schedule_cases import MIN_LR, MIN_LR_RATE, POLYNOMIAL, SQRT, WSD, optimizer_with

LINEAR, COSINE = "get_linear_schedule_with_warmup", "get_cosine_schedule_with_warmup"
BOTH_REFUSE = [
    (POLYNOMIAL, (0, 10), {"lr_end": 0.5}, ValueError, r"lr_end should be below .* 0\.5"),
    (POLYNOMIAL, (0, 10), {"lr_end": 1.0}, ValueError, r"lr_end should be below"),
    (MIN_LR, (0, 10), {}, ValueError, r"min_lr.*min_lr_rate.*Given: neither"),
    (MIN_LR, (0, 10), {"min_lr": 0.1, "min_lr_rate": 0.1}, ValueError, r"Given: both min_lr=0\.1"),
    (MIN_LR_RATE, (0, 10), {}, ValueError, r"Given: neither"),
    (MIN_LR_RATE, (0, 10), {"min_lr": 0, "min_lr_rate": 0}, ValueError, r"Given: both min_lr=0"),
    (WSD, (0, 3), {}, ValueError, r"num_training_steps or num_stable_steps"),
    (WSD, (0, 3, 9), {"warmup_type": "sqrt"}, ValueError, r"warmup_type.*did you mean '1-sqrt'"),
    (WSD, (0, 3, 9), {"decay_type": "liner"}, ValueError, r"decay_type.*did you mean 'linear'"),
    (WSD, (0,), {"num_training_steps": 9}, TypeError, r"num_decay_steps"),
    (LINEAR, (0,), {}, TypeError, r"num_training_steps"),
    (LINEAR, (0, 10), {"num_cycles": 1}, TypeError, r"num_cycles"),
    ("GreedyLR", (), {"factor": 1.0}, ValueError, r"factor"),
    ("GreedyLR", (), {"mode": "lower"}, ValueError, r"mode"),
    ("GreedyLR", (), {"threshold_mode": "relative"}, ValueError, r"one of 'rel', 'abs'"),
    ("GreedyLR", (), {"min_lr": [0.1, 0.1]}, ValueError, r"min_lr should have 3 numbers.*has 2"),
    ("GreedyLR", (), {"max_lr": [0.1, 0.1]}, ValueError, r"max_lr should have 3 numbers.*has 2"),
]
ONLY_OURS = [
    (LINEAR, (-1, 10), {}, ValueError, rf"{LINEAR}: num_warmup_steps should be 0 or more.*-1"),
    (LINEAR, (0, -10), {}, ValueError, r"num_training_steps should be 0 or more but is: -10"),
    (LINEAR, (0, None), {}, TypeError, r"num_training_steps should be a number but is: None"),
    (LINEAR, (0, float("nan")), {}, ValueError, r"num_training_steps should be finite"),
    (LINEAR, ("many", 9), {}, ValueError, r"num_warmup_steps should be a number but is: 'many'"),
    (COSINE, (0, 10), {"num_cycles": -1}, ValueError, r"num_cycles should be 0 or more"),
    (POLYNOMIAL, (0, 10), {"power": -1}, ValueError, r"power should be 0 or more"),
    (SQRT, (0,), {"timescale": 0}, ValueError, r"timescale should be above 0"),
    (SQRT, (0,), {"timescale": -3}, ValueError, r"timescale should be 0 or more"),
    (MIN_LR, (0, 10), {"min_lr": -0.1}, ValueError, r"min_lr should be 0 or more"),
    (WSD, (0, -3, 9), {}, ValueError, r"num_decay_steps should be 0 or more"),
    (WSD, (0, 3), {"num_stable_steps": -1}, ValueError, r"num_stable_steps should be 0 or more"),
    ("GreedyLR", (), {"factor": 0.0}, ValueError, r"factor should be between 0 and 1"),
    ("GreedyLR", (), {"patience": -1}, ValueError, r"patience should be 0 or more"),
    ("GreedyLR", (), {"window_size": 0, "smooth": True}, ValueError, r"window_size"),
    ("GreedyLR", (), {"min_lr": 2.0}, ValueError, r"min_lr should be at most max_lr.*2\.0"),
]


@pytest.mark.parametrize(("function", "steps", "options", "kind", "said"), BOTH_REFUSE)
def test_what_the_peer_refuses_is_refused_with_the_same_error(function, steps, options, kind, said):
    with pytest.raises(kind):
        getattr(peer, function)(optimizer_with(), *steps, **options)
    with pytest.raises(kind, match=said):
        getattr(ours, function)(optimizer_with(), *steps, **options)


@pytest.mark.parametrize(("function", "steps", "options", "kind", "said"), ONLY_OURS)
def test_what_makes_no_sense_is_refused_at_the_door(function, steps, options, kind, said):
    with pytest.raises(kind, match=said):
        getattr(ours, function)(optimizer_with(), *steps, **options)


MAKERS = {
    "get_constant_schedule": (),
    "get_constant_schedule_with_warmup": (1,),
    LINEAR: (1, 9),
    COSINE: (1, 9),
    "get_cosine_with_hard_restarts_schedule_with_warmup": (1, 9),
    POLYNOMIAL: (1, 9),
    SQRT: (1,),
    MIN_LR: (1, 9, 0.5, -1, 0.1),
    MIN_LR_RATE: (1, 9, 0.5, -1, 0.1),
    WSD: (1, 1, 9),
    "get_reduce_on_plateau_schedule": (),
    "get_greedy_schedule": (),
    "GreedyLR": (),
}


def test_every_function_is_tested():
    made = {name for name in ours.__all__ if name.startswith("get_") and "schedule" in name}
    assert made - {"get_adafactor_schedule", "get_scheduler"} == set(MAKERS) - {"GreedyLR"}


@pytest.mark.parametrize("function", MAKERS)
def test_a_learning_rate_that_the_optimizer_chooses_itself_is_not_scheduled(function):
    optimizer = ours.Adafactor([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(TypeError, match=r"lr=None.*relative_step=False, or use AdafactorSchedule"):
        getattr(ours, function)(optimizer, *MAKERS[function])


def test_torchs_own_classes_are_not_given_one_either():
    optimizer = ours.Adafactor([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(TypeError, match=r"schedule 'StepLR': group 0 of Adafactor has lr=None"):
        by_name("StepLR", optimizer, step_size=3)


@pytest.mark.parametrize("function", MAKERS)
def test_an_optimizer_without_a_learning_rate_is_refused(function):
    class Rateless(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {})

    with pytest.raises(ValueError, match=r"group 0 of Rateless has no 'lr'"):
        getattr(ours, function)(Rateless([torch.zeros(1)]), *MAKERS[function])


@pytest.mark.parametrize("function", MAKERS)
def test_only_an_optimizer_has_a_schedule(function):
    with pytest.raises(TypeError, match=r"is not an Optimizer"):
        getattr(ours, function)(torch.nn.Linear(1, 1), *MAKERS[function])


@pytest.mark.parametrize("function", [POLYNOMIAL, MIN_LR, MIN_LR_RATE])
@pytest.mark.parametrize("lr", [None, 0.0])
def test_a_share_needs_a_default_learning_rate_to_be_a_share_of(function, lr):
    optimizer = ours.Adafactor(
        [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.5}], lr=lr, relative_step=False
    )
    with pytest.raises(ValueError, match=r"default lr of Adafactor"):
        getattr(ours, function)(optimizer, *MAKERS[function])


def test_a_resume_needs_the_learning_rates_of_the_beginning():
    for module in (ours, peer):
        with pytest.raises(KeyError, match=r"initial_lr"):
            module.get_linear_schedule_with_warmup(optimizer_with(), 0, 10, last_epoch=3)


def test_both_lengths_of_a_stable_phase_are_a_warning():
    for module in (ours, peer):
        with pytest.warns(UserWarning, match=r"num_stable_steps"):
            module.get_wsd_schedule(optimizer_with(), 1, 1, 9, 2)


@pytest.mark.parametrize("module", [ours, peer])
def test_get_scheduler_asks_for_the_steps_that_a_schedule_needs(module):
    def ask(name, *arguments, **more):
        module.get_scheduler(name, optimizer_with(), *arguments, **more)

    with pytest.raises(ValueError, match=r"num_warmup_steps"):
        ask("linear", None, 10)
    with pytest.raises(ValueError, match=r"num_training_steps"):
        ask("cosine", 3)
    with pytest.raises(ValueError, match=r"min_lr"):
        ask("cosine_with_min_lr", 3, 10)
    with pytest.raises(TypeError, match=r"num_decay_steps"):
        ask("warmup_stable_decay", 3, 10)
    with pytest.raises(TypeError, match=r"cycles"):
        ask("cosine", 3, 10, scheduler_specific_kwargs={"cycles": 1})
    with pytest.raises(ValueError, match=r"cosine_with_restarts"):
        ask("cosinus", 3, 10)
    ask("constant", 3, 10, scheduler_specific_kwargs={"ignored": 1})
    ask("constant_with_warmup", 3, scheduler_specific_kwargs={"ignored": 1})


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(ValueError, match=r"did you mean 'cosine'"):
        ours.get_scheduler("cosinus", optimizer_with(), 3, 10)
    with pytest.raises(ValueError, match=r"did you mean 'OneCycleLR'"):
        by_name("onecycle_lr", optimizer_with())
    with pytest.raises(TypeError, match=r"StepLR.*did you mean 'step_size'.*step_size, gamma"):
        by_name("StepLR", optimizer_with(), stepsize=3)
    with pytest.raises(TypeError, match=r"no argument 'power'.*none"):
        by_name("Constant", optimizer_with(), power=3)


@pytest.mark.parametrize(("name", "given", "kind", "said"), [
    ("linear", {"num_warmup_steps": 0}, ValueError, r"num_training_steps, or epochs and steps"),
    ("linear", {"num_training_steps": 9}, ValueError, r"num_warmup_steps or warmup_ratio, 0 for"),
    ("linear", {"warmup_ratio": 0.1, "num_warmup_steps": 3}, ValueError, r"not both"),
    ("linear", {"warmup_ratio": 0.1}, ValueError, r"warmup_ratio=0\.1 is a share of"),
    ("linear", {"num_warmup_steps": 0.1}, ValueError, r"num_warmup_steps=0\.1 is a share of"),
    ("linear", {"warmup_ratio": 1.5, "num_training_steps": 9}, ValueError, r"from 0 to 1"),
    ("linear", {"warmup_ratio": -1, "num_training_steps": 9}, ValueError, r"0 or more"),
    ("linear", {"epochs": -1, "steps_per_epoch": 3}, ValueError, r"epochs should be 0 or more"),
    ("linear", {"epochs": 3}, ValueError, r"steps_per_epoch is missing"),
    ("linear", {"epochs": 3, "steps_per_epoch": 2, "num_training_steps": 7}, ValueError, r"is 6"),
    ("linear", {"num_training_steps": 7.5}, ValueError, r"should be a whole number but is: 7\.5"),
    ("OneCycleLR", {"max_lr": 1}, ValueError, r"needs total_steps: give num_training_steps, or"),
    ("CosineAnnealingLR", {}, ValueError, r"needs T_max: give num_training_steps, or epochs"),
    ("CosineAnnealingLR", {"num_training_steps": 5, "num_warmup_steps": 5}, ValueError,
     r"a warm-up of 5 steps leaves none of 5"),
    ("greedy", {"last_epoch": 3}, ValueError, r"has no last_epoch: resume it with load_state_dict"),
    ("StepLR", {}, ValueError, r"schedule 'StepLR' needs step_size: give step_size"),
    ("greedy", {"num_warmup_steps": 3}, ValueError, r"follows a metric and has no warm-up"),
    ("reduce_lr_on_plateau", {"patience_": 3}, TypeError, r"did you mean 'patience'"),
])  # fmt: skip
def test_a_config_that_cannot_be_carried_out_is_refused(name, given, kind, said):
    with pytest.raises(kind, match=said):
        by_name(name, optimizer_with(), **given)


def test_a_warm_up_is_put_around_a_schedule_at_its_beginning():
    with pytest.raises(TypeError, match=r"WarmUp: schedule should be.*is: SGD"):
        WarmUp(optimizer_with(), 3)
    schedule = Schedule(optimizer_with(), lambda step: 1.0)
    with pytest.raises(ValueError, match=r"warmup_steps should be 0 or more"):
        WarmUp(schedule, -3)
    schedule.optimizer.step()
    schedule.step()
    with pytest.raises(ValueError, match=r"at its beginning but has made 1 steps"):
        WarmUp(schedule, 3)
