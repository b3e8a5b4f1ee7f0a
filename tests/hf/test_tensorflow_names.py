"""TensorFlow's names of AdamWeightDecay's and WarmUp's arguments: the same run as with torch's."""

import copy
import pickle

import pytest
import torch

from fusedstep.hf import AdamWeightDecay, WarmUp
from tests.support.cases import make_params, set_grads

SHAPES = [(7,), (5, 3)]
TORCHS = {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-4, "weight_decay": 0.1}
TENSORFLOWS = {
    "learning_rate": 0.05, "beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-4, "weight_decay_rate": 0.1,
}  # fmt: skip


def stepped(optimizer, params, steps=3):
    for step in range(steps):
        set_grads(params, step)
        optimizer.step()
    return [param.detach().clone() for param in params]


def test_both_names_are_one_argument():
    ours, theirs = make_params(SHAPES), make_params(SHAPES)
    runs = [
        stepped(AdamWeightDecay(ours, **TORCHS), ours),
        stepped(AdamWeightDecay(theirs, **TENSORFLOWS, name="any"), theirs),
    ]
    assert all(map(torch.equal, *runs))
    half = AdamWeightDecay(make_params(SHAPES), beta_2=0.5, lr="1e-2")
    assert half.defaults["betas"] == (0.9, 0.5) and half.defaults["lr"] == 0.01


@pytest.mark.parametrize(
    ("own", "other"),
    [
        ("lr", "learning_rate"),
        ("betas", "beta_1"),
        ("betas", "beta_2"),
        ("eps", "epsilon"),
        ("weight_decay", "weight_decay_rate"),
    ],
)
def test_both_names_at_once_are_an_error_that_names_both(own, other):
    """Even if the value is the default."""
    defaults = {"lr": 0.001, "betas": (0.9, 0.999), "eps": 1e-7, "weight_decay": 0.0}
    for value in (TORCHS[own], pickle.loads(pickle.dumps(defaults[own]))):
        with pytest.raises(TypeError, match=rf"{own}=.* and {other}=.* one argument with two"):
            AdamWeightDecay(make_params(SHAPES), **{own: value, other: TENSORFLOWS[other]})


def test_patterns_choose_what_decays():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3)).double()
    options = {"exclude_from_weight_decay": ["bias", r"^1\."], "include_in_weight_decay": r"1\.b"}
    pairs = list(model.named_parameters())
    optimizer = AdamWeightDecay(pairs, weight_decay_rate=0.1, **options)
    assert [(g["weight_decay"], g["param_names"]) for g in optimizer.param_groups] == [
        (0.1, ["0.weight", "1.bias"]),
        (0.0, ["0.bias", "1.weight"]),
    ]
    again = AdamWeightDecay.from_config(optimizer.get_config(), pairs)
    assert [g["weight_decay"] for g in again.param_groups] == [0.1, 0.0]
    with pytest.raises(TypeError, match="search in names, but params hold a Parameter"):
        AdamWeightDecay(model.parameters(), include_in_weight_decay="weight")


@pytest.mark.parametrize("options", [{}, {"clipnorm": 1.0}, {"clipvalue": 0.5, "amsgrad": True}])
def test_a_config_makes_the_same_optimizer(options):
    params = make_params(SHAPES)
    made = AdamWeightDecay(params, **TENSORFLOWS, **options, decay=0.25)
    config = made.get_config()
    assert config == {
        "name": "AdamWeightDecay", **TENSORFLOWS, "decay": 0.25, "amsgrad": False, **options,
    }  # fmt: skip
    again = AdamWeightDecay.from_config({**config, "is_legacy_optimizer": True}, params)
    assert again.defaults == made.defaults and again.get_config() == config
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert other.get_config() == config


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"learning_rat": 0.1}, "no argument 'learning_rat' .did you mean 'learning_rate'"),
        ({"learning_rate": {"class_name": "WarmUp"}}, "learning_rate is WarmUp, which PyTorch"),
        ({"learning_rate": lambda step: 0.1}, "learning_rate is a function.*WarmUp"),
    ],
)
def test_a_config_that_we_cannot_follow_is_refused(config, said):
    with pytest.raises(TypeError, match=said):
        AdamWeightDecay.from_config(config, make_params(SHAPES))


@pytest.mark.parametrize("decay", [-1.0, float("inf"), float("nan")])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(ValueError, match="decay should be a finite number of 0 or more"):
        AdamWeightDecay(make_params(SHAPES), decay=decay)


def test_a_limit_of_values_excludes_what_reads_gradients():
    with pytest.raises(ValueError, match=r"clipvalue=1.0 and max_grad_norm=1.0 exclude"):
        AdamWeightDecay(make_params(SHAPES), clipvalue=1.0, max_grad_norm=1.0)


def rates(schedule, steps):
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr())
        schedule.optimizer.step()
        schedule.step()
    return found


def sgd():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.5, 0.25)]
    return torch.optim.SGD(groups)


def after(step):
    return 0.8 * 0.5**step


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_a_warm_up_takes_tensorflows_arguments(power):
    """As its formula: up to initial_learning_rate, then the function of what is left."""
    config = {
        "initial_learning_rate": 0.4, "decay_schedule_fn": after, "warmup_steps": 4,
        "power": power, "name": "mine",
    }  # fmt: skip
    schedule = WarmUp(optimizer=sgd(), **config)
    assert schedule.get_config() == config
    expected = [0.4 * (s / 4) ** power if s < 4 else after(s - 4) for s in range(9)]
    assert rates(schedule, 9) == [[lr, lr] for lr in expected]

    half = WarmUp.from_config(config, sgd())
    rates(half, 4)  # at the step between the two parts
    later = WarmUp.from_config(config, sgd())
    later.optimizer.load_state_dict(half.optimizer.state_dict())
    later.load_state_dict(pickle.loads(pickle.dumps(half.state_dict())))
    assert rates(later, 5) == [[lr, lr] for lr in expected[4:]]


def test_a_warm_up_before_torchs_schedule_may_have_its_own_first_rate():
    optimizer = sgd()
    schedule = WarmUp(
        decay_schedule_fn=torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5),
        warmup_steps=2, initial_learning_rate=0.2,
    )  # fmt: skip
    assert rates(schedule, 4) == [[0.0, 0.0], [0.1, 0.1], [0.5, 0.25], [0.25, 0.125]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"decay_schedule_fn": after}, "warmup_steps is missing"),
        ({"decay_schedule_fn": after, "warmup_steps": 2}, "function, which has no optimizer"),
        ({"schedule": after, "decay_schedule_fn": after, "warmup_steps": 2},
         "schedule=.* and decay_schedule_fn=.* two names"),
        ({"schedule": 0.1, "warmup_steps": 2}, "schedule should be .* but is: float"),
    ],
)  # fmt: skip
def test_a_warm_up_of_wrong_arguments_is_refused(arguments, said):
    with pytest.raises(TypeError, match=said):
        WarmUp(**arguments)
