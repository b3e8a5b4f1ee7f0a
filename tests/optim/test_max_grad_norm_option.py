"""max_grad_norm: how it is given, changed, kept and refused, and what a GradScaler does with it."""

import copy
import math
import pickle

import numpy
import pytest
import torch

import fusedstep.optim
from fusedstep.hf.adam_weight_decay import AdamWeightDecay
from tests.support.cases import each, make_params, same_bits
from tests.support.clipping import gradients_of, norm
from tests.support.rule_cases import CASE_OF, once_a_kind

ADAMW = fusedstep.optim.AdamW
SHAPES = [(), (7,), (0,), (1025,), (33, 17), (9, 1030), (3, 5, 7), (270, 260)]


def test_the_limit_may_change_between_steps():
    params = make_params([(50,)])
    optimizer = ADAMW(params)
    assert optimizer.max_grad_norm is None and optimizer.grad_norm is None
    gradients_of(params, 0)
    optimizer.step()
    plan = optimizer._plan
    assert optimizer.grad_norm is None and plan.launchers[0]._squares is None  # nobody pays
    optimizer.max_grad_norm = "2"
    optimizer.step()
    assert optimizer.max_grad_norm == 2.0 and optimizer._plan is plan
    assert optimizer.grad_norm.item() == pytest.approx(norm([params[0].grad]))
    optimizer.max_grad_norm = None
    assert optimizer.grad_norm is None
    optimizer.step()
    assert optimizer.grad_norm is None


WRONG = [0, 0.0, -1.0, math.nan, -math.inf]
NO_NUMBERS = [True, False, "much", (1.0,), torch.ones(()), {}, numpy.bool_(True)]


@pytest.mark.parametrize("value", [*WRONG, *NO_NUMBERS], ids=str)
@each([CASE_OF["adamw"], CASE_OF["adafactor"]])
def test_wrong_limits_are_refused_when_they_are_given(case, value):
    error = ValueError if isinstance(value, str) or type(value) in (int, float) else TypeError
    params = make_params([(3,)])
    with pytest.raises(error, match="max_grad_norm should be a number"):
        case.make(params, max_grad_norm=value)
    optimizer = case.make(params, max_grad_norm=1.0)
    with pytest.raises(error, match="max_grad_norm should be a number"):
        optimizer.max_grad_norm = value
    assert optimizer.max_grad_norm == 1.0


@pytest.mark.parametrize("value", [2, 2.0, "2.0", numpy.float32(2.0), numpy.int64(2)], ids=repr)
def test_all_kinds_of_numbers_are_taken(value):
    assert ADAMW(make_params([(3,)]), max_grad_norm=value).max_grad_norm == 2.0


@pytest.mark.parametrize("how", [copy.deepcopy, lambda own: pickle.loads(pickle.dumps(own))])
@once_a_kind
def test_copies_and_pickles_keep_the_limit(case, how):
    params = make_params([(5, 6), (7,)])
    optimizer = case.make(params, max_grad_norm=0.5)
    for step in range(2):
        if step:
            optimizer = how(optimizer)
            params = [p for group in optimizer.param_groups for p in group["params"]]
        grads = gradients_of(params, step)
        optimizer.step()
        assert optimizer.max_grad_norm == 0.5
        assert optimizer.grad_norm.item() == pytest.approx(norm(grads))


@once_a_kind
def test_checkpoints_do_not_have_it_and_are_the_peers(case):
    params, twins = make_params([(5, 6), (7,)]), make_params([(5, 6), (7,)])
    optimizer, peer = case.make(params, max_grad_norm=0.5), case.make_peer(twins)
    plain = case.make(make_params([(5, 6), (7,)]))
    gradients_of(params, 0), gradients_of(twins, 0)
    optimizer.step()
    peer.step()
    saved = optimizer.state_dict()
    assert [group.keys() for group in saved["param_groups"]] == [
        group.keys() for group in plain.state_dict()["param_groups"]
    ]
    optimizer.load_state_dict(peer.state_dict())
    assert optimizer.max_grad_norm == 0.5
    peer.load_state_dict(saved)
    optimizer.step()
    peer.step()


@pytest.mark.parametrize("key", ["clipnorm", "global_clipnorm"])
def test_it_excludes_the_clipping_that_writes_gradients(key):
    params = make_params([(3,)])
    error = f"{key}=2.0 and max_grad_norm=1.0 exclude each other"
    with pytest.raises(ValueError, match=error):
        AdamWeightDecay(params, max_grad_norm=1.0, **{key: 2.0})
    optimizer = AdamWeightDecay(params, **{key: 2.0})
    optimizer.max_grad_norm = 1.0
    (grad,) = gradients_of(params, 0)
    before = params[0].detach().clone(), grad.clone()
    with pytest.raises(ValueError, match=error):
        optimizer.step()
    assert torch.equal(params[0], before[0]) and torch.equal(grad, before[1])


# GradScaler.


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("bad", [None, math.inf])
def test_a_grad_scaler_unscales_before_the_norm(fused, bad):
    params, twins = make_params(SHAPES), make_params(SHAPES)
    optimizer, plain = ADAMW(params, fused=fused, max_grad_norm=0.5), ADAMW(twins, fused=fused)
    scalers = [torch.amp.GradScaler("cpu", init_scale=8.0) for _ in range(2)]
    exact = norm(gradients_of(params, 0))
    gradients_of(twins, 0)
    for own, made, scaler in ((params, optimizer, scalers[0]), (twins, plain, scalers[1])):
        scaler.scale(torch.ones(()))
        for param in own:
            param.grad *= 8.0
        if bad:
            own[3].grad[5] = bad
        if made is plain:
            scaler.unscale_(made)
            unscaled = [param.grad.clone() for param in own]
            torch.nn.utils.clip_grad_norm_(own, 0.5)
        scaler.step(made)
        scaler.update()
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)
    if bad and not fused:
        assert optimizer.grad_norm is None  # the scaler takes no step
    elif bad:
        assert optimizer.grad_norm.item() == math.inf
        assert all(map(same_bits, params, make_params(SHAPES)))
    else:
        assert optimizer.grad_norm.item() == pytest.approx(exact, rel=1e-12)
        assert all(same_bits(p.grad, g) for p, g in zip(params, unscaled, strict=True))


def test_a_refused_step_has_no_norm():
    params = make_params([(50,), (4,)])
    optimizer = ADAMW(params, max_grad_norm=1.0)
    gradients_of(params, 0)
    params[1].grad = params[1].grad.to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert optimizer.grad_norm is None
