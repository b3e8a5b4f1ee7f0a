"""SparseAdam: torch's step by our name. Arguments, bits and checkpoints are torch's."""

import inspect

import pytest
import torch

from fusedstep.optim import SparseAdam, by_name, enable_gradient_release
from fusedstep.optim.mirrored import mirrored

OPTIONS = {"lr": 0.05, "betas": (0.5, 0.7), "maximize": True}
# Indices of one row each, one of them twice, and of single elements.
PLACES = [torch.tensor([[3, 1, 3, 6]]), torch.tensor([[0, 4, 0], [2, 1, 2]])]


def make_params(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(8, 5, generator=generator).to(dtype)) for _ in PLACES]


def set_grads(params, step):
    generator = torch.Generator().manual_seed(step)
    for param, places in zip(params, PLACES, strict=True):
        shape = (places.shape[1], *param.shape[len(places) :])
        values = torch.randn(shape, generator=generator).to(param.dtype)
        param.grad = torch.sparse_coo_tensor(places, values, param.shape, check_invariants=True)


def run(make, params, steps):
    optimizer = make(params, **OPTIONS)
    for step in steps:
        set_grads(params, step)
        optimizer.step()
    return optimizer


def assert_same(ours, params, peer, peers):
    for p, q in zip(params, peers, strict=True):
        assert torch.equal(p, q)
        assert ours.state[p].keys() == peer.state[q].keys()
        for key, value in peer.state[q].items():
            assert type(ours.state[p][key]) is type(value)
            assert torch.equal(torch.as_tensor(ours.state[p][key]), torch.as_tensor(value))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_every_bit_is_torchs_and_rows_without_gradients_stay(dtype):
    params, peers, first = make_params(dtype), make_params(dtype), make_params(dtype)
    ours = run(SparseAdam, params, range(3))
    assert_same(ours, params, run(torch.optim.SparseAdam, peers, range(3)), peers)
    for param, old, places in zip(params, first, PLACES, strict=True):
        stays = torch.ones(param.shape, dtype=torch.bool)
        stays[tuple(places)] = False
        assert torch.equal(param[stays], old[stays])
        assert (param[~stays] != old[~stays]).all()
        for key in ("exp_avg", "exp_avg_sq"):
            assert not ours.state[param][key][stays].any()
            assert ours.state[param][key][~stays].all()


@pytest.mark.parametrize("first", [SparseAdam, torch.optim.SparseAdam])
def test_checkpoints_go_both_ways(first):
    other = torch.optim.SparseAdam if first is SparseAdam else SparseAdam
    whole, halves = make_params(), make_params()
    kept = run(first, whole, range(4))
    saved = run(first, halves, range(2)).state_dict()
    later = other(halves)
    later.load_state_dict(saved)
    for step in (2, 3):
        set_grads(halves, step)
        later.step()
    assert_same(kept, whole, later, halves)


def test_a_call_of_torchs_is_a_call_of_ours():
    found = [p for p in inspect.signature(SparseAdam).parameters.values() if p.name != "backend"]
    wanted = inspect.signature(torch.optim.SparseAdam).parameters.values()
    assert [(p.name, p.default, p.kind) for p in found] == [
        (p.name, p.default, p.kind) for p in wanted
    ]
    assert by_name("sparse_adam", make_params(), lr="1e-2").param_groups[0]["lr"] == 0.01


@pytest.mark.parametrize(
    "options", [{"lr": 0.0}, {"lr": torch.ones(2)}, {"eps": 0.0}, {"betas": (1.0, 0.9)}], ids=str
)
def test_wrong_options_get_torchs_error(options):
    with pytest.raises(ValueError, match=r"Invalid|1-element") as expected:
        torch.optim.SparseAdam(make_params(), **options)
    with pytest.raises(ValueError, match=r"Invalid|1-element") as found:
        SparseAdam(make_params(), **options)
    assert str(found.value) == str(expected.value)


def test_what_it_cannot_do_is_refused():
    for name in ("cpu", "cuda", "triton"):
        with pytest.raises(ValueError, match=f"backend='{name}' has no kernel for SparseAdam"):
            SparseAdam(make_params(), backend=name)
    with pytest.raises(ValueError, match="backend should be one of"):
        SparseAdam(make_params(), backend="fast")
    model = torch.nn.Embedding(4, 2, sparse=True)
    optimizer = SparseAdam(model.parameters(), backend="reference")
    with pytest.raises(TypeError, match="and not SparseAdam, but is: SparseAdam"):
        enable_gradient_release(model, optimizer)
    model.weight.grad = torch.ones(4, 2)
    with pytest.raises(RuntimeError, match="does not support dense gradients"):
        optimizer.step()
    assert mirrored()[torch.optim.SparseAdam] is SparseAdam
