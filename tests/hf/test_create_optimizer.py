"""create_optimizer: its learning rates, its groups, and a whole run against the definition."""

import copy
import inspect
import math
import pickle

import pytest
import torch
from torch import nn

from fusedstep.hf.adam_weight_decay import AdamWeightDecay
from fusedstep.hf.create_optimizer import create_optimizer
from tests.support.cases import assert_same

SCHEDULES = [
    {"num_train_steps": 10, "num_warmup_steps": 0},
    {"num_train_steps": 10, "num_warmup_steps": 4},
    {"num_train_steps": 10, "num_warmup_steps": 4, "min_lr_ratio": 0.25, "power": 2.0},
    {"num_train_steps": 10, "num_warmup_steps": 1, "min_lr_ratio": 1.0, "power": 0.5},
    {"num_train_steps": 4, "num_warmup_steps": 4, "min_lr_ratio": 0.5},
    {"num_train_steps": 0, "num_warmup_steps": 0, "min_lr_ratio": 0.5},
]


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3)).double()


def rate(s, init_lr, num_train_steps, num_warmup_steps, min_lr_ratio=0.0, power=1.0):
    """The definition. It is `end` if the warm-up ends at the last step."""
    end = init_lr * min_lr_ratio
    if s < num_warmup_steps:
        return init_lr * s / num_warmup_steps
    if s > num_train_steps or num_train_steps == num_warmup_steps:
        return end
    share = (s - num_warmup_steps) / (num_train_steps - num_warmup_steps)
    return (init_lr - end) * (1 - share) ** power + end


@pytest.mark.parametrize("options", SCHEDULES, ids=str)
def test_the_learning_rate_warms_up_and_decays(options):
    optimizer, schedule = create_optimizer(network(), 0.3, **options)
    for s in range(14):
        wanted = pytest.approx(rate(s, 0.3, **options), rel=1e-14, abs=0.0)
        assert schedule.get_last_lr() == [wanted] * 2
        assert [group["lr"] for group in optimizer.param_groups] == [wanted] * 2
        optimizer.step()
        schedule.step()


def set_grads(model, step):
    generator = torch.Generator().manual_seed(step)
    for param in model.parameters():
        param.grad = torch.randn(param.shape, generator=generator, dtype=param.dtype)


@pytest.mark.parametrize(
    "limits", [{}, {"adam_clipnorm": 0.5}, {"adam_global_clipnorm": 0.5}], ids=str
)
@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_a_training_follows_the_definition(decay, limits):
    model, options = network(), SCHEDULES[2]
    optimizer, schedule = create_optimizer(
        model,
        0.3,
        **options,
        adam_beta1=0.7,
        adam_beta2=0.8,
        adam_epsilon=1e-3,
        weight_decay_rate=decay,
        **limits,
    )
    names = [name for name, _ in model.named_parameters()]
    values = [p.detach().clone() for p in model.parameters()]
    means, squares = [x * 0 for x in values], [x * 0 for x in values]
    limit = next(iter(limits.values()), math.inf)
    for s in range(12):
        set_grads(model, s)
        norms = [p.grad.norm().item() for p in model.parameters()]
        if "adam_global_clipnorm" in limits:
            norms = [math.hypot(*norms)] * len(norms)
        lr, t = rate(s, 0.3, **options), s + 1
        for i, param in enumerate(model.parameters()):
            g = param.grad * min(1.0, limit / norms[i])
            means[i] = 0.7 * means[i] + 0.3 * g
            squares[i] = 0.8 * squares[i] + 0.2 * g**2
            decays = names[i] in ("0.weight", "2.weight")
            values[i] = values[i] * (1 - lr * decay * decays)
            size = lr * math.sqrt(1 - 0.8**t) / (1 - 0.7**t)
            values[i] = values[i] - size * means[i] / (squares[i].sqrt() + 1e-3)
        optimizer.step()
        schedule.step()
    for param, wanted in zip(model.parameters(), values, strict=True):
        torch.testing.assert_close(param.detach(), wanted, rtol=1e-12, atol=1e-13)


def test_names_choose_what_decays():
    optimizer, _ = create_optimizer(
        network(),
        0.3,
        10,
        0,
        weight_decay_rate=0.2,
        include_in_weight_decay=["1.weight"],
        exclude_from_weight_decay="^0",
    )
    assert type(optimizer) is AdamWeightDecay
    assert [(g["weight_decay"], g["param_names"]) for g in optimizer.param_groups] == [
        (0.2, ["1.weight", "2.weight"]),
        (0.0, ["0.weight", "0.bias", "1.bias", "2.bias"]),
    ]


def test_its_arguments_are_those_of_transformers_behind_the_model():
    found = inspect.signature(create_optimizer).parameters.values()
    assert {p.name: p.default for p in found if p.kind is p.POSITIONAL_OR_KEYWORD} == {
        "model": inspect.Parameter.empty,
        "init_lr": inspect.Parameter.empty,
        "num_train_steps": inspect.Parameter.empty,
        "num_warmup_steps": inspect.Parameter.empty,
        "min_lr_ratio": 0.0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "adam_clipnorm": None,
        "adam_global_clipnorm": None,
        "weight_decay_rate": 0.0,
        "power": 1.0,
        "include_in_weight_decay": None,
    }


def test_numbers_may_be_strings():
    options = dict.fromkeys(["min_lr_ratio", "weight_decay_rate", "adam_clipnorm"], "0.5")
    optimizer, schedule = create_optimizer(network(), "0.3", "10", "4", power="2", **options)
    group = optimizer.param_groups[0]
    assert (group["weight_decay"], group["clipnorm"], group["initial_lr"]) == (0.5, 0.5, 0.3)
    wanted = rate(1, 0.3, 10, 4)
    schedule.optimizer.step()
    schedule.step()
    assert schedule.get_last_lr()[0] == pytest.approx(wanted, rel=1e-14)


def through_checkpoints(model, optimizer, schedule):
    other = network(seed=1)
    other.load_state_dict(model.state_dict())
    new_optimizer, new_schedule = create_optimizer(other, 0.3, **SCHEDULES[2])
    new_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    new_schedule.load_state_dict(schedule.state_dict())
    return other, new_optimizer, new_schedule


def through_pickle(*made):
    return pickle.loads(pickle.dumps(made))


@pytest.mark.parametrize("way", [through_checkpoints, through_pickle])
def test_an_interrupted_training_goes_on_as_the_whole_one(way):
    def train(model, optimizer, schedule, steps):
        for s in steps:
            set_grads(model, s)
            optimizer.step()
            schedule.step()

    model = network()
    made = (
        model,
        *create_optimizer(
            model, 0.3, **SCHEDULES[2], weight_decay_rate=0.1, adam_global_clipnorm=0.5
        ),
    )
    train(*made, range(5))
    model.zero_grad()
    again = way(*made)
    train(*made, range(5, 12))
    train(*again, range(5, 12))
    assert_same(again[1], list(again[0].parameters()), made[1], list(made[0].parameters()))
    assert again[2].get_last_lr() == made[2].get_last_lr()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"init_lr": 0.0}, "init_lr should be above 0"),
        ({"init_lr": math.nan}, "init_lr should be finite"),
        ({"num_train_steps": -1}, "num_train_steps should be 0 or more"),
        ({"num_warmup_steps": -1}, "num_warmup_steps should be 0 or more"),
        ({"num_warmup_steps": 11}, "num_train_steps .* at least num_warmup_steps=11 but is: 10"),
        ({"min_lr_ratio": -0.1}, "min_lr_ratio should be 0 or more"),
        ({"min_lr_ratio": 1.1}, "min_lr_ratio should be from 0 to 1"),
        ({"power": -1.0}, "power should be 0 or more"),
        ({"weight_decay_rate": -0.1}, "weight_decay_rate should be 0 or more"),
        ({"weight_decay_rate": math.nan}, "weight_decay_rate should be finite"),
        ({"adam_clipnorm": 0.0}, "clipnorm should be a finite number above 0"),
        ({"adam_clipnorm": 1.0, "adam_global_clipnorm": 1.0}, "exclude each other"),
        ({"include_in_weight_decay": "("}, "no regular expression"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_by_name(options, text):
    options = {"init_lr": 0.3, "num_train_steps": 10, "num_warmup_steps": 4, **options}
    with pytest.raises(ValueError, match=text):
        create_optimizer(network(), **options)


def test_parameters_instead_of_the_model_are_refused():
    with pytest.raises(TypeError, match=r"model should be a torch\.nn\.Module"):
        create_optimizer(network().parameters(), 0.3, 10, 4)
