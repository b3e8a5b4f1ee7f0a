"""Wrong hyper-parameters are refused: in the constructor, in a group's options, and when a script
changes a group later."""

import math

import pytest
import torch

from tests.support.cases import QUIET, make_params, set_grads
from tests.support.wrong_values import ADAFACTOR, ADAMW, HF, OLD_ADAMW, WRONG, nan

FIXED = {"lr": 0.1, "relative_step": False}
TABLE = [(kind, *wrong) for kind, rows in WRONG.items() for wrong in rows]
each_wrong = pytest.mark.parametrize(
    ("kind", "key", "value", "said"),
    TABLE,
    ids=[f"{kind.__module__}-{key}-{value}" for kind, key, value, _ in TABLE],
)


def made(kind, groups, **options):
    more = {OLD_ADAMW: QUIET, HF: FIXED}.get(kind, {})
    return kind(groups, **{**more, **options})


@each_wrong
def test_a_wrong_value_is_refused_at_construction(kind, key, value, said):
    """If the peer refuses it too, the text is the peer's: `test_interface` compares them."""
    words = r"(?i)invalid|should be|Tensor lr must be|not supported"
    with pytest.raises((ValueError, TypeError), match=words):
        made(kind, make_params([(2, 2)]), **{key: value})


@each_wrong
def test_a_wrong_value_is_refused_in_the_options_of_a_group(kind, key, value, said):
    said = said.replace("lr should be a number but is: 'fast'", "should be a number")
    first, second = make_params([(2, 2)]), make_params([(2, 2)])
    with pytest.raises((ValueError, TypeError), match=said):
        made(kind, [{"params": first}, {"params": second, key: value}])
    optimizer = made(kind, first)
    with pytest.raises((ValueError, TypeError), match=said):
        optimizer.add_param_group({"params": second, key: value})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": second})


@pytest.mark.parametrize("steps", [0, 2])
@each_wrong
def test_a_wrong_value_is_refused_when_a_script_sets_it(kind, key, value, said, steps):
    first, second = make_params([(2, 3)]), make_params([(4, 1)])
    optimizer = made(kind, [{"params": first}, {"params": second}])
    for step in range(steps + 1):
        set_grads(first + second, step)
        if step < steps:
            optimizer.step()
    before = [param.detach().clone() for param in first + second]
    states = len(optimizer.state)
    kept = optimizer.param_groups[1][key]
    optimizer.param_groups[1][key] = value
    with pytest.raises((ValueError, TypeError), match=f"{kind.__name__}: group 1: {said}"):
        optimizer.step()
    assert all(map(torch.equal, first + second, before))
    assert len(optimizer.state) == states
    optimizer.param_groups[1][key] = kept
    optimizer.step()
    assert not any(map(torch.equal, first + second, before))


@pytest.mark.parametrize(("kind", "options"), [
    (ADAMW, {"lr": 0, "weight_decay": 0, "eps": 0}),
    (ADAMW, {"lr": math.inf}),
    (ADAMW, {"betas": (0.0, 0.0)}),
    (ADAFACTOR, {"lr": math.inf, "beta2_decay": 0, "d": 1, "eps": (0, 0)}),
    (OLD_ADAMW, {"weight_decay": -0.1}),
    (HF, {"eps": [0.0, 0], "clip_threshold": math.inf, "decay_rate": 0, "beta1": 0}),
    (HF, {"weight_decay": -0.1}),
    (HF, {"lr": None, "relative_step": True}),
], ids=str)  # fmt: skip
def test_what_the_peer_takes_is_taken(kind, options):
    params = make_params([(2, 3), (4,)])
    optimizer = made(kind, params, **options)
    set_grads(params, 0)
    optimizer.step()


def test_the_lr_that_adafactor_schedule_shows_is_not_read():
    """With relative_step any lr is allowed, since the step does not read it."""
    params = make_params([(2, 3)])
    optimizer = HF(params)
    set_grads(params, 0)
    optimizer.param_groups[0]["lr"] = nan
    optimizer.step()
    assert params[0].isfinite().all()


@pytest.mark.parametrize("value", ["0.25", torch.tensor(0.25), torch.tensor([0.25])], ids=str)
def test_a_number_in_another_form_is_that_number(value):
    runs = []
    for given in (0.25, value):
        params = make_params([(2, 3)])
        optimizer = ADAMW(params)
        set_grads(params, 0)
        optimizer.param_groups[0]["lr"] = given
        optimizer.step()
        runs.append(params[0].detach())
    assert torch.equal(*runs)


def test_a_tensor_on_a_device_is_not_read(on_device, monkeypatch):
    params = make_params([(2, 3)])
    lr = torch.tensor(0.25)
    optimizer = ADAMW(params, lr=lr, backend="reference")
    on_device(only=[lr])
    monkeypatch.setattr(torch.Tensor, "item", None)
    optimizer._check_group(optimizer.param_groups[0])
