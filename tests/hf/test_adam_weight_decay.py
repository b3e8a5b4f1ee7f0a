"""AdamWeightDecay against its formulas in float64. Its limits are saved, loaded and checked."""

import copy
import inspect
import io
import math
import pickle

import pytest
import torch

from fusedstep.hf.adam_weight_decay import AdamWeightDecay
from tests.support.cases import ALWAYS_OURS, SECOND_NAMES, assert_same, make_params, set_grads
from tests.support.clipping import LIMITS, SHAPES, clipped, norm

BAD_NUMBERS = [0.0, -1.0, math.nan, math.inf, "big"]


def split(params):
    """Two groups with different decays."""
    return [{"params": params[::2], "weight_decay": 0.3}, {"params": params[1::2]}]


def exact_run(
    params, of_step, decays, lr, betas, eps, amsgrad=False, decay=0.0, clipvalue=math.inf, **limits
):
    """Parameters after steps with the gradients `of_step`, in float64."""
    (beta1, beta2), values = betas, [p.detach().double() for p in params]
    means, squares, largest = ([x * 0 for x in values] for _ in range(3))
    for t, grads in enumerate(of_step, 1):
        lr_t = lr / (1 + decay * (t - 1))
        size = lr_t * math.sqrt(1 - beta2**t) / (1 - beta1**t)
        grads = [g.double().clamp(-clipvalue, clipvalue) for g in grads]
        for i, g in enumerate(clipped(grads, **limits)):
            means[i] = beta1 * means[i] + (1 - beta1) * g
            squares[i] = beta2 * squares[i] + (1 - beta2) * g**2
            largest[i] = torch.maximum(largest[i], squares[i])
            under = largest[i] if amsgrad else squares[i]
            update = size * means[i] / (under.sqrt() + eps)
            values[i] = values[i] - lr_t * decays[i] * values[i] - update
    return values


KERAS = [{"amsgrad": True}, {"decay": 0.5}, {"clipvalue": 0.01}]
ALL_TOGETHER = {"amsgrad": True, "decay": 0.5, "clipvalue": 0.01, "clipnorm": 0.05}


@pytest.mark.parametrize("limits", [*LIMITS, *KERAS, ALL_TOGETHER], ids=str)
def test_it_trains_by_its_formulas(limits):
    params = make_params(SHAPES, torch.float64)
    options = {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-4}
    optimizer = AdamWeightDecay(split(params), weight_decay=0.1, **options, **limits)
    start, of_step = [p.detach().clone() for p in params], []
    for step in range(5):
        set_grads(params, step, scale=1.0 if step != 2 else 1e-6)
        of_step.append([p.grad.clone() for p in params])
        optimizer.step()
    decays = [(0.3, 0.1)[i % 2] for i in range(len(params))]
    for p, q in zip(params, exact_run(start, of_step, decays, **options, **limits), strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=1e-13, atol=1e-13)


def test_its_arguments_and_defaults_are_those_of_keras_in_torchs_words():
    found = inspect.signature(AdamWeightDecay).parameters.values()
    other = ("params", *ALWAYS_OURS, *SECOND_NAMES[AdamWeightDecay])
    assert {p.name: p.default for p in found if p.name not in other} == {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-7,
        "weight_decay": 0.0,
        "clipnorm": None,
        "global_clipnorm": None,
        "amsgrad": False,
        "clipvalue": None,
        "decay": 0.0,
    }


def through_pickle(optimizer, params):
    return pickle.loads(pickle.dumps((optimizer, params)))


def through_deepcopy(optimizer, params):
    return copy.deepcopy((optimizer, params))


def through_a_checkpoint(optimizer, params):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    fresh = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = AdamWeightDecay(split(fresh))  # the groups bring their options
    other.load_state_dict(torch.load(file, weights_only=True))
    return other, fresh


@pytest.mark.parametrize("way", [through_pickle, through_deepcopy, through_a_checkpoint])
@pytest.mark.parametrize("limits", [*LIMITS[1:], ALL_TOGETHER], ids=str)
def test_limits_survive(limits, way):
    params = make_params(SHAPES)
    optimizer = AdamWeightDecay(split(params), lr=0.1, **limits)
    set_grads(params, 0, scale=1.0)
    optimizer.step()
    runs = [(optimizer, params), way(optimizer, params)]
    for own, own_params in runs:
        set_grads(own_params, 1, scale=10.0)
        own.step()
    assert_same(*runs[0], *runs[1])
    for p, q in zip(params, runs[1][1], strict=True):
        assert torch.equal(p.grad, q.grad)


def test_a_checkpoint_without_limits_takes_those_of_the_constructor():
    params = make_params([(50,)])
    optimizer = AdamWeightDecay(params, clipnorm=0.5)
    saved = optimizer.state_dict()
    for key in ("clipnorm", "global_clipnorm", "clipvalue", "amsgrad", "decay"):
        del saved["param_groups"][0][key]
    optimizer.load_state_dict(saved)
    set_grads(params, 0, scale=1.0)
    optimizer.step()
    assert norm([params[0].grad]) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("bad", BAD_NUMBERS)
@pytest.mark.parametrize("option", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_a_limit_that_is_no_limit_is_refused(option, bad):
    with pytest.raises(ValueError, match=rf"^{option} should be a .*number"):
        AdamWeightDecay(make_params([(2,)]), **{option: bad})
    with pytest.raises(ValueError, match=rf"^{option} should be a .*number"):
        AdamWeightDecay([{"params": make_params([(2,)]), option: bad}])


def test_both_limits_together_are_refused():
    with pytest.raises(ValueError, match=r"clipnorm=1.0 and global_clipnorm=2.0 exclude"):
        AdamWeightDecay(make_params([(2,)]), clipnorm=1.0, global_clipnorm=2.0)


def test_groups_of_other_global_limits_are_refused_before_anything_has_changed():
    params = make_params([(2,), (3,)])
    optimizer = AdamWeightDecay(params[:1], global_clipnorm=0.1)
    optimizer.add_param_group({"params": params[1:], "global_clipnorm": 0.2})
    set_grads(params, 0, scale=1.0)
    before = [p.grad.clone() for p in params]
    with pytest.raises(ValueError, match=r"all groups together, but groups have 0.1 and 0.2"):
        optimizer.step()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(params, before, strict=True))
