"""Clipping: which gradients it changes, how exact it is, and that it never waits."""

import math

import pytest
import torch

from fusedstep.hf.adam_weight_decay import AdamWeightDecay
from fusedstep.optim import gradients
from fusedstep.plan import devices
from tests.support.cases import assert_same, make_params, set_grads
from tests.support.clipping import LIMITS, SHAPES, clipped, norm


def clip_each(grads, limit):
    gradients.Norms(()).clip_each(gradients.Gradients(grads, grads), limit)


def clip_together(grads, limit):
    gradients.Norms(()).clip_together(gradients.Gradients(grads, grads), limit)


each_clip = pytest.mark.parametrize("clip", [clip_each, clip_together])


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str
)
@pytest.mark.parametrize("limits", LIMITS[1:], ids=str)
def test_gradients_are_written_and_the_step_takes_them(limits, dtype):
    """Two roundings for each number, factor and product: 2 * eps / 2, plus the second order."""
    params, twins = make_params(SHAPES, dtype), make_params(SHAPES, dtype)
    optimizer, plain = AdamWeightDecay(params, **limits), AdamWeightDecay(twins)
    for step in range(3):
        set_grads(params, step, scale=1.0)
        objects, wanted = [p.grad for p in params], clipped([p.grad for p in params], **limits)
        optimizer.step()
        for p, grad, exact in zip(params, objects, wanted, strict=True):
            assert p.grad is grad
            bound = torch.finfo(dtype).eps * 1.01 * exact.abs()
            least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
            assert ((grad.double() - exact).abs() <= bound.clamp(min=least)).all()
        for twin, p in zip(twins, params, strict=True):
            twin.grad = p.grad.clone()
        plain.step()
        assert_same(optimizer, params, plain, twins)


@pytest.mark.parametrize("limits", LIMITS[1:], ids=str)
def test_gradients_within_the_limit_keep_their_bits(limits):
    params = make_params(SHAPES)
    optimizer = AdamWeightDecay(params, **{key: 1e3 for key in limits})
    set_grads(params, 0)
    before = [p.grad.clone() for p in params]
    optimizer.step()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(params, before, strict=True))


@each_clip
def test_a_norm_that_equals_the_limit_changes_nothing(clip):
    """In floating point, 49 * (1 / 49) is not 1."""
    for limit in range(1, 100):
        grad = torch.tensor([0.0, float(limit), 0.0], dtype=torch.float64)
        clip([[grad]], float(limit))
        assert grad[1] == limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each_clip
def test_norms_of_many_numbers_are_exact(clip, dtype):
    """A sum in float32 would be off by 3e-4, and by 5e-6 if done in pieces."""
    large = torch.randn(3_000_017, generator=torch.Generator().manual_seed(0)).to(dtype)
    small = torch.ones(3, dtype=dtype)
    for exact, found in zip(
        (norm([small]), norm([large])), gradients._norms([small, large]).tolist(), strict=True
    ):
        assert abs(found - exact) <= 1e-12 * exact
    grads = [small.clone(), large.clone()]
    clip([grads], 0.5)
    option = "clipnorm" if clip is clip_each else "global_clipnorm"
    for found, exact in zip(grads, clipped([small, large], **{option: 0.5}), strict=True):
        assert ((found - exact).abs() <= 1.01 * torch.finfo(dtype).eps * exact.abs()).all()


@pytest.mark.parametrize(("value", "limit"), [(1e25, 1.0), (1e-25, 1e-26)])
@each_clip
def test_squares_that_float32_cannot_hold_are_no_harm(clip, value, limit):
    grad = torch.full((4,), value)
    clip([[grad]], limit)
    torch.testing.assert_close(grad, torch.full((4,), limit / 2), rtol=2.5e-7, atol=0.0)


def test_one_norm_holds_gradients_of_all_dtypes():
    params = [torch.nn.Parameter(torch.zeros(4, dtype=d)) for d in (torch.float64, torch.bfloat16)]
    groups = [{"params": [param]} for param in params]
    optimizer = AdamWeightDecay(groups, global_clipnorm=2.5)
    params[0].grad, params[1].grad = torch.full_like(params[0], 3), torch.full_like(params[1], 4)
    optimizer.step()
    assert params[0].grad.tolist() == [0.75] * 4
    assert params[1].grad.tolist() == [1.0] * 4


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("limits", LIMITS[1:], ids=str)
def test_infinities_and_nans_do_what_the_formula_says(limits, bad):
    params = make_params([(4,), (3,)])
    optimizer = AdamWeightDecay(params, **limits)
    set_grads(params, 0, scale=1.0)
    params[0].grad[1] = bad
    optimizer.step()
    if math.isnan(bad):
        assert params[0].grad.isnan().all()
        assert params[1].grad.isnan().all() == ("global_clipnorm" in limits)
    else:
        assert params[0].grad.isnan().tolist() == [False, True, False, False]
        assert params[0].grad.nan_to_num().abs().sum() == 0
        assert (params[1].grad == 0).all() == ("global_clipnorm" in limits)


def test_a_group_may_have_its_own_limit():
    params = make_params([(50,)] * 4)
    groups = [{"params": [params[0]], "clipnorm": "0.25"}, {"params": [params[1]]}]
    optimizer = AdamWeightDecay(groups, clipnorm="0.5")
    optimizer.add_param_group({"params": [params[2]], "clipnorm": None})
    optimizer.add_param_group({"params": [params[3]]})
    set_grads(params, 0, scale=1.0)
    unclipped = params[2].grad.clone()
    optimizer.step()
    assert norm([params[0].grad]) == pytest.approx(0.25, rel=1e-6)
    assert norm([params[1].grad]) == pytest.approx(0.5, rel=1e-6)
    assert norm([params[3].grad]) == pytest.approx(0.5, rel=1e-6)
    assert torch.equal(params[2].grad, unclipped)


def expanded(grad):
    return grad.flatten()[:1].reshape((1,) * grad.dim()).expand(grad.shape)


LAYOUTS = {
    "expanded": expanded,
    "negated": lambda grad: torch._neg_view(-grad),
    "transposed": lambda grad: grad.mT.contiguous().mT,
    "sliced": lambda grad: torch.stack([grad, grad], -1)[..., 0],
    "unused stride 0": lambda grad: grad.as_strided(
        grad.shape, [0 if n == 1 else s for n, s in zip(grad.shape, grad.stride(), strict=True)]
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("limits", LIMITS[1:], ids=str)
def test_gradients_of_any_layout_are_clipped_as_their_plain_copies(limits, layout):
    runs = []
    for plain in (False, True):
        params = make_params([(33, 17), (1, 9), (9, 1), (4, 3, 2)])
        optimizer = AdamWeightDecay(params, lr=0.1, **limits)
        for step in range(3):
            set_grads(params, step, scale=1.0)
            for param in params:
                param.grad = LAYOUTS[layout](param.grad)
                if plain:
                    param.grad = torch.empty(param.shape).copy_(param.grad)
            optimizer.step()
        runs.append((optimizer, params))
    assert_same(*runs[0], *runs[1])
    for p, q in zip(runs[0][1], runs[1][1], strict=True):
        assert torch.equal(p.grad, q.grad)


@pytest.mark.parametrize("limits", LIMITS[1:], ids=str)
def test_a_conjugated_gradient_is_clipped_as_pairs_of_reals(limits):
    grad = torch.tensor([3 + 4j, 0j, 12j], dtype=torch.complex64)
    param = torch.nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    param.grad = grad.conj()
    AdamWeightDecay([param], **{key: 6.5 for key in limits}).step()
    assert torch.equal(param.grad, grad.conj().resolve_conj() / 2)


@pytest.mark.parametrize("expand", [False, True])
@pytest.mark.parametrize("limits", LIMITS[1:], ids=str)
def test_a_gradient_that_parameters_share_is_clipped_once(limits, expand):
    params = make_params([(4,)] * 3)
    shared = torch.tensor(3.0).expand(4)
    params[0].grad = params[1].grad = shared if expand else shared.clone()
    AdamWeightDecay(params, **{key: 4.0 for key in limits}).step()
    assert params[0].grad is params[1].grad
    torch.testing.assert_close(params[0].grad, torch.full((4,), 2.0))


def test_gradients_of_the_closure_are_clipped():
    params = make_params([(50,)])
    optimizer = AdamWeightDecay(params, clipnorm=0.5)

    def closure():
        set_grads(params, 0, scale=1.0)
        return 3.0

    assert optimizer.step(closure) == 3.0
    assert norm([params[0].grad]) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("limits", LIMITS[1:], ids=str)
def test_a_refused_step_clips_nothing(limits):
    params = make_params([(50,), (4,)])
    optimizer = AdamWeightDecay(list(zip("ab", params, strict=True)), **limits)
    set_grads(params, 0, scale=1.0)
    before = params[0].grad.clone()
    params[1].grad = params[1].grad.to_sparse()
    with pytest.raises(RuntimeError, match="AdamWeightDecay: parameter 1 of group 0 \\('b'"):
        optimizer.step()
    assert torch.equal(params[0].grad, before)


@pytest.mark.parametrize("limits", LIMITS[1:], ids=str)
def test_steps_without_gradients_or_numbers_are_no_harm(limits):
    params = make_params([(0,), (3,)])
    optimizer = AdamWeightDecay(params, **limits)
    optimizer.step()
    params[0].grad = torch.zeros(0)
    optimizer.step()
    assert optimizer.state[params[0]]["step"] == 1
    assert gradients.writable(params[:1]).kinds == []


@each_clip
def test_clipping_waits_for_no_device(clip):
    """Nothing can be read from meta tensors."""
    grads = [[torch.ones(3, device="meta", dtype=d)] * 2 for d in (torch.float32, torch.bfloat16)]
    clip(grads, 1.0)
    with pytest.raises(RuntimeError):
        grads[0][0].norm().item()


@each_clip
def test_what_a_device_runs_gives_the_results_of_the_host(clip, monkeypatch):
    runs = []
    for far in (False, True):
        if far:
            monkeypatch.setattr(devices, "on_host", lambda tensor: False)
        params = make_params(SHAPES)
        set_grads(params, 0, scale=1.0)
        clip(gradients.writable(params).kinds, 0.1)
        runs.append([p.grad for p in params])
    for near, far in zip(*runs, strict=True):
        torch.testing.assert_close(near, far, rtol=2.4e-7, atol=0.0)


@pytest.mark.parametrize("limit", ["clipnorm", "global_clipnorm"])
def test_gradients_that_are_still_scaled_are_not_clipped(limit):
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = AdamWeightDecay([param], **{limit: 1.0})
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
    with pytest.raises(RuntimeError, match=r"unscale_\(optimizer\) before the step"):
        optimizer.step()
    assert torch.equal(param.grad, torch.ones(3)) and torch.equal(param.data, torch.ones(3))
