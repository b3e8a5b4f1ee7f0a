"""Muon against torch's: values, states, errors and checkpoints; batches, options, what is refused.
The tables of cases have tensors of any shape, so Muon is not in them. Its two rules are."""

import copy
import inspect

import pytest
import torch
from torch.distributed.tensor import Replicate, distribute_tensor

from fusedstep.optim import Muon, enable_gradient_release
from fusedstep.optim.masters import master_of
from tests.support.cases import ALWAYS_OURS, make_params, set_grads
from tests.support.fake_mesh import fake_mesh
from tests.support.garbage import assert_freed

Peer = getattr(torch.optim, "Muon", None)
needs_peer = pytest.mark.skipif(Peer is None, reason="torch.optim.Muon came with torch 2.9")

# Batches of several, wide and tall ones, one row or column, nothing.
SHAPES = [(32, 32), (24, 40), (40, 24), (32, 32), (40, 24), (1, 30), (30, 1), (0, 4)]
SIZES = [shape for shape in SHAPES if 0 not in shape]  # torch divides by the columns
OPTIONS = [
    {"lr": 0.02},
    {"lr": 0.02, "nesterov": False, "weight_decay": 0.0, "adjust_lr_fn": "original"},
    {"lr": 0.01, "momentum": 0.5, "ns_steps": 2, "adjust_lr_fn": "match_rms_adamw"},
    {"lr": torch.tensor(0.02), "ns_coefficients": (3.0, -4.0, 2.0), "eps": 1e-3, "ns_steps": 0},
]
each_option = pytest.mark.parametrize("options", OPTIONS, ids=str)
each_backend = pytest.mark.parametrize("backend", ["cpu", "reference"])


def run(optimizer, params, steps, scale=0.01):
    for step in steps:
        set_grads(params, step, scale)
        optimizer.step()
    return optimizer


def test_without_its_clamp_the_ratio_of_a_wide_matrix_is_below_1():
    """torch has this since 2.14; torch's own cases are tests there."""
    runs = []
    for lr, ratio in ((0.02, "spectral_unclamped"), (0.02 * (24 / 40) ** 0.5, "original")):
        params = make_params([(24, 40)])
        run(Muon(params, lr=lr, weight_decay=0.0, adjust_lr_fn=ratio), params, range(3))
        runs.append(params)
    assert all(map(torch.equal, *runs))


def distances(params, exact):
    """The errors of all numbers together, of each parameter."""
    pairs = zip(params, exact, strict=True)
    return [(p.double() - q.double()).norm().item() for p, q in pairs]


class Exact(Peer or object):
    """torch's step with products in float64 instead of bfloat16."""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, momentum = float(group["lr"]), group["momentum"]
            for p in group["params"]:
                m = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - momentum)
                x = p.grad.lerp(m, momentum) if group["nesterov"] else m
                rows, cols = p.shape
                x = x.T if rows > cols else x
                x = x / x.norm().clamp(min=group["eps"])
                a, b, c = group["ns_coefficients"]
                for _ in range(group["ns_steps"]):
                    gram = x @ x.T
                    x = a * x + (b * gram + c * gram @ gram) @ x
                ratio = max(1, rows / cols) ** 0.5
                if group["adjust_lr_fn"] == "match_rms_adamw":
                    ratio = 0.2 * max(rows, cols) ** 0.5
                p.mul_(1 - lr * group["weight_decay"])
                p.sub_(x.T if rows > cols else x, alpha=lr * ratio)


@needs_peer
@each_option
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_errors_are_at_most_twice_torchs(options, dtype):
    found = []
    for make, own in ((Muon, dtype), (Peer, dtype), (Exact, torch.float64)):
        params = make_params(SIZES, own)
        optimizer = run(make(params, **options), params, range(10))
        found.append((params, [optimizer.state[p]["momentum_buffer"] for p in params]))
    (ours, moments), (peers, their_moments), (exact, exact_moments) = found
    for own, other in zip(distances(ours, exact), distances(peers, exact), strict=True):
        assert own <= 2 * other + 1e-12
    for m, other, true in zip(moments, their_moments, exact_moments, strict=True):
        assert m.dtype == other.dtype
        assert (m - true).norm() <= 2 * (other - true).norm() + 1e-12


@each_option
def test_backends_agree_in_every_bit_and_batches_change_nothing(options):
    wanted = make_params(SHAPES)
    run(Muon(wanted, **options, backend="cpu"), wanted, range(3))
    reference = make_params(SHAPES)
    run(Muon(reference, **options, backend="reference"), reference, range(3))
    assert all(map(torch.equal, wanted, reference))
    alone = make_params(SHAPES)
    optimizers = [Muon([param], **options) for param in alone]
    for step in range(3):
        set_grads(alone, step)
        for optimizer in optimizers:
            optimizer.step()
    assert all(map(torch.equal, wanted, alone))


@needs_peer
@pytest.mark.parametrize("first", [Muon, Peer])
def test_checkpoints_go_both_ways(first):
    other = Peer if first is Muon else Muon
    whole, halves = make_params(SIZES), make_params(SIZES)
    run(first(whole, lr=0.02), whole, range(4))
    saved = run(first(halves, lr=0.02), halves, range(2)).state_dict()
    later = other(halves)
    later.load_state_dict(saved)
    assert later.state_dict()["param_groups"] == saved["param_groups"]
    run(later, halves, (2, 3))
    for p, q in zip(halves, whole, strict=True):
        assert list(later.state[p]) == ["momentum_buffer"]
        # One bfloat16 unit of a product of size 1, times lr and steps.
        torch.testing.assert_close(p, q, rtol=0.0, atol=2 * 0.02 * 2**-6)


def test_a_resume_is_bit_exact_whatever_is_stored():
    options = [{}, {"master_weights": True}, {"stochastic_rounding": True, "seed": 3}]
    for more in [*options, {"state_dtype": "int8"}]:
        shapes = [(32, 128), (32, 128), (24, 40)]
        whole, halves = (make_params(shapes, torch.bfloat16) for _ in range(2))
        run(Muon(whole, lr=0.02, **more), whole, range(4))
        saved = copy.deepcopy(run(Muon(halves, lr=0.02, **more), halves, range(2)).state_dict())
        later = Muon(halves, **more)
        later.load_state_dict(saved)
        run(later, halves, (2, 3))
        assert all(map(torch.equal, whole, halves)), more


@needs_peer
def test_a_call_of_torchs_is_a_call_of_ours():
    found = [
        (p.name, p.default, p.kind)
        for p in inspect.signature(Muon).parameters.values()
        if p.name not in ALWAYS_OURS
    ]
    wanted = inspect.signature(Peer).parameters.values()
    assert found == [(p.name, p.default, p.kind) for p in wanted]
    assert Muon(make_params(SIZES)).defaults == Peer(make_params(SIZES)).defaults
    assert tuple(inspect.signature(Muon).parameters)[-len(ALWAYS_OURS) :] == tuple(ALWAYS_OURS)


@needs_peer
@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"lr": -1.0}, (2, 2)),
        ({"lr": torch.ones(2)}, (2, 2)),
        ({"momentum": -1.0}, (2, 2)),
        ({"weight_decay": -1.0}, (2, 2)),
        ({"adjust_lr_fn": "fast"}, (2, 2)),
        ({}, (4,)),
        ({}, (2, 2, 2)),
        ({"ns_steps": 100}, (2, 2)),
        ({"ns_coefficients": (1.0, 2.0)}, (2, 2)),
    ],
    ids=str,
)
def test_wrong_options_get_torchs_error(options, shape):
    said = []
    for make in (Peer, Muon):
        params = make_params([shape])
        set_grads(params, 0)
        with pytest.raises(ValueError, match=r"should|must|only|not supported") as found:
            make(params, **options).step()
        said.append(str(found.value))
    assert said[0] == said[1]


def test_what_it_cannot_step_is_refused_before_anything_changes():
    params = make_params([(4, 4), (4, 4)])
    optimizer = Muon(params)
    set_grads(params, 0)
    before = [param.detach().clone() for param in params]
    params[1].grad = params[1].grad.to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients: Muon: parameter 1"):
        optimizer.step()
    number = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    number.grad = torch.ones_like(number)
    with pytest.raises(RuntimeError, match="does not support complex parameters"):
        Muon([number]).step()
    vector = make_params([(3,)])
    set_grads([params[1], *vector], 1)
    optimizer.add_param_group({"params": vector})
    with pytest.raises(ValueError, match=r"must be a 2D matrix: Muon: .*Optimize it with AdamW"):
        optimizer.step()
    assert all(map(torch.equal, params, before)) and not optimizer.state


def test_sharded_parameters_are_refused_by_name():
    with fake_mesh() as mesh:
        param = torch.nn.Parameter(distribute_tensor(torch.ones(4, 4), mesh, [Replicate()]))
        param.grad = param.detach().clone()
        with pytest.raises(
            RuntimeError, match=r"parameter 0.* is sharded, .*optimize it with AdamW"
        ):
            Muon([param]).step()


@each_backend
def test_gradients_may_move_come_and_go(backend):
    """Each parameter alone, with the gradients that it had, gives the same bits."""
    shapes = [(16, 16), (16, 16), (8, 24)]
    params, alone = make_params(shapes), make_params(shapes)
    together = Muon(params, backend=backend)
    single = [Muon([param], backend=backend) for param in alone]
    for step, absent in enumerate([(), (1,), (1,), (), (0, 1), (0, 1, 2), ()]):
        for own in (params, alone):
            set_grads(own, step)
            for k in absent:
                own[k].grad = None
        together.step()
        for optimizer in single:
            optimizer.step()
        assert all(map(torch.equal, params, alone)), step


@each_backend
@pytest.mark.parametrize("layout", ["parameter", "gradient"])
def test_any_layout_gives_the_same_bits(layout, backend):
    plain, strided = make_params([(24, 40)]), make_params([(24, 40)])
    if layout == "parameter":
        strided = [torch.nn.Parameter(strided[0].detach().T.contiguous().T)]
    optimizers = Muon(plain, backend=backend), Muon(strided, backend=backend)
    for step in range(2):
        for own in (plain, strided):
            set_grads(own, step)
        if layout == "gradient":
            strided[0].grad = strided[0].grad.T.contiguous().T
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(plain[0], strided[0])


def test_groups_have_their_own_numbers():
    params, alone = make_params([(16, 16)] * 3), make_params([(16, 16)] * 3)
    groups = [
        {"params": params[:1], "lr": 0.1},
        {"params": params[1:], "ns_steps": 3, "weight_decay": 0.5, "adjust_lr_fn": "original"},
    ]
    own = [{**group, "params": [twin]} for group, twin in zip(groups, alone, strict=False)]
    optimizers = [Muon(groups), Muon(own[:1]), Muon([{**own[1], "params": alone[1:]}])]
    for step in range(3):
        set_grads(params, step)
        set_grads(alone, step)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= 0.5
            optimizer.step()
    assert all(map(torch.equal, params, alone))


def test_a_gradient_scale_clipping_and_an_infinity():
    plain, scaled = make_params(SHAPES), make_params(SHAPES)
    first, second = Muon(plain, max_grad_norm=0.1), Muon(scaled, max_grad_norm=0.1)
    run(first, plain, range(2))
    second.grad_scale = torch.tensor(4.0)
    run(second, scaled, range(2), scale=0.04)
    assert all(map(torch.equal, plain, scaled))
    assert first.grad_norm == second.grad_norm
    before = [param.detach().clone() for param in scaled]
    moments = [(m, m.clone()) for state in second.state.values() for m in state.values()]
    second.found_inf = torch.tensor(1.0)
    run(second, scaled, [5])
    assert all(map(torch.equal, scaled, before))
    assert all(torch.equal(m, old) for m, old in moments)
    clipped = make_params(SHAPES)
    third = Muon(clipped)
    for step in range(2):
        set_grads(clipped, step)
        torch.nn.utils.clip_grad_norm_(clipped, 0.1)
        third.step()
    for p, q in zip(plain, clipped, strict=True):
        torch.testing.assert_close(p, q, rtol=0.0, atol=1e-4)  # a bfloat16 unit, times lr


def test_low_precision_options_train_as_float32_does():
    """Small steps are lost in bfloat16 alone, and count with each option."""

    def trained(dtype, **more):
        params = make_params([(32, 128)], dtype)
        optimizer = Muon(params, lr=1e-3, weight_decay=0.0, **more)
        run(optimizer, params, [0] * 20)
        master = master_of(params[0], optimizer.state[params[0]])
        return master.double() - make_params([(32, 128)])[0].detach().double()

    exact = trained(torch.float32)
    for more in ({"master_weights": True}, {"master_weights": 8}, {"stochastic_rounding": True}):
        moved = trained(torch.bfloat16, **more)
        assert 0.8 < (moved * exact).sum() / exact.square().sum() < 1.2, more
    lost = trained(torch.bfloat16)
    assert (lost * exact).sum() / exact.square().sum() < 0.8
    kept = trained(torch.float32, state_dtype="int8")
    assert (kept - exact).norm() < 0.1 * exact.norm()


def test_it_is_freed_copied_and_released():
    def make():
        params = make_params(SIZES)
        optimizer = run(Muon(params), params, range(2))
        optimizer.load_state_dict(optimizer.state_dict())
        return run(optimizer, params, [2]), params

    assert_freed(make)
    params = make_params([(8, 8)])
    optimizer = run(Muon(params), params, range(2))
    twin = copy.deepcopy(optimizer)
    for own in (optimizer, twin):
        run(own, own.param_groups[0]["params"], [2])
    assert torch.equal(params[0], twin.param_groups[0]["params"][0])
    models = [torch.nn.Linear(8, 8, bias=False) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    enable_gradient_release(models[0], Muon(models[0].parameters()))
    for model in models:
        model(torch.ones(8)).sum().backward()
    assert models[0].weight.grad is None
    Muon(models[1].parameters()).step()
    assert torch.equal(models[0].weight, models[1].weight)


def test_a_step_takes_two_launches_whatever_the_groups():
    params = make_params([(8, 8), (8, 16), (16, 8), (8, 8)])
    optimizer = Muon([{"params": [param]} for param in params])
    run(optimizer, params, range(2))
    walks = optimizer._walks
    assert len(walks.first.buckets) == len(walks.second.buckets) == 1
    assert sum(own.matrices.nbytes for own in walks.batches) == 2 * sum(p.numel() for p in params)
    run(optimizer, params, [2])
    assert optimizer._walks is walks
