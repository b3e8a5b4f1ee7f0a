"""Master weights: taken out, put in, and noticed when something else writes the parameters."""

import copy
import io
import warnings

import pytest
import torch

from fusedstep.optim import Adafactor, AdamW
from fusedstep.optim.masters import master_of
from tests.support.cases import make_params, same_bits, set_grads
from tests.support.stored_cases import BF16, F16, F32, assert_same_bits

DTYPES = pytest.mark.parametrize("dtype", [BF16, F16], ids=str)


class Model(torch.nn.Module):
    """A tied weight, a buffer, a frozen weight, a float32 weight."""

    def __init__(self, dtype):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = torch.nn.Linear(16, 16, bias=True, dtype=dtype)
        self.last = torch.nn.Linear(16, 16, bias=False, dtype=dtype)
        self.last.weight = self.first.weight
        self.norm = torch.nn.LayerNorm(16, dtype=F32)
        self.frozen = torch.nn.Parameter(torch.ones(3, dtype=dtype), requires_grad=False)
        self.register_buffer("counter", torch.zeros(2))
        with torch.no_grad():
            for param in self.parameters():
                param.copy_(torch.randn(param.shape, generator=generator))

    def trained(self):
        return [param for param in self.parameters() if param.requires_grad]


def trained(dtype, steps=3, **options):
    model = Model(dtype)
    optimizer = AdamW(model.trained(), lr=1e-3, **{"master_weights": True, **options})
    go_on(model, optimizer, 0, steps)
    return model, optimizer


def go_on(model, optimizer, first, steps):
    for step in range(first, first + steps):
        set_grads(model.trained(), step)
        optimizer.step()


@DTYPES
def test_a_float32_model_loads_the_masters(dtype):
    model, optimizer = trained(dtype)
    wide = Model(F32)
    saved = optimizer.master_state_dict(model)
    wide.load_state_dict(saved)
    assert saved.keys() == model.state_dict().keys()
    own = master_of(model.first.weight, optimizer.state[model.first.weight])
    assert same_bits(saved["first.weight"], own)
    assert same_bits(saved["last.weight"], own)
    assert not torch.equal(own, model.first.weight.float())
    assert same_bits(saved["norm.weight"], model.norm.weight.detach())
    assert saved["frozen"].dtype == dtype  # the optimizer does not have it


@pytest.mark.parametrize("options", [{}, {"master_weights": 8}], ids=str)
@DTYPES
def test_masters_go_into_another_optimizer(dtype, options):
    """And training goes on as without it: all states are those of the checkpoint."""
    model, optimizer = trained(dtype, **options)
    saved = optimizer.master_state_dict(model)
    other, fresh = trained(dtype, steps=5, **options)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch would share counters
    fresh.load_master_state_dict(other, saved)
    assert_same_bits(optimizer, model.trained(), fresh, other.trained())
    go_on(model, optimizer, 3, 3)
    go_on(other, fresh, 3, 3)
    assert_same_bits(optimizer, model.trained(), fresh, other.trained())


def test_masters_before_the_first_step():
    """As when a run starts from a float32 checkpoint: no bit of it is lost."""
    model, wide = Model(BF16), Model(F32)
    with torch.no_grad():
        for param in wide.parameters():
            param.mul_(1.0001)
    optimizer = AdamW(model.trained(), lr=1e-3, master_weights=True)
    optimizer.load_master_state_dict(model, wide.state_dict())
    for param, own in zip(model.trained(), wide.trained(), strict=True):
        assert same_bits(master_of(param, optimizer.state[param]), own.detach())
    plain = AdamW(wide.trained(), lr=1e-3)
    for step in range(3):
        set_grads(model.trained(), step)
        for param, own in zip(model.trained(), wide.trained(), strict=True):
            own.grad = param.grad.to(F32)
        optimizer.step()
        plain.step()
    for param, own in zip(model.trained(), wide.trained(), strict=True):
        assert same_bits(master_of(param, optimizer.state[param]), own.detach())


@DTYPES
def test_a_checkpoint_keeps_the_masters(dtype):
    model, optimizer = trained(dtype)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    for order in (("model", "optimizer"), ("optimizer", "model")):
        other, fresh = trained(dtype, steps=1)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        for key in order:
            (other if key == "model" else fresh).load_state_dict(copy.deepcopy(saved[key]))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again, own = Model(dtype), None
            again.load_state_dict(saved["model"])
            own = AdamW(again.trained(), lr=1e-3, master_weights=True)
            own.load_state_dict(saved["optimizer"])
            go_on(again, own, 3, 2)
            go_on(other, fresh, 3, 2)
        assert_same_bits(own, again.trained(), fresh, other.trained())
    go_on(model, optimizer, 3, 2)
    assert_same_bits(optimizer, model.trained(), fresh, other.trained())


@DTYPES
def test_a_copy_has_its_own_masters(dtype):
    model, optimizer = trained(dtype)
    other, fresh = copy.deepcopy((model, optimizer))
    go_on(model, optimizer, 3, 2)
    go_on(other, fresh, 3, 2)
    assert_same_bits(optimizer, model.trained(), fresh, other.trained())


@DTYPES
def test_a_checkpoint_without_masters_starts_them(dtype):
    model, optimizer = trained(dtype, master_weights=False, state_dtype=F32)
    own = AdamW(model.trained(), lr=1e-3, master_weights=True)
    own.load_state_dict(optimizer.state_dict())
    go_on(model, own, 3, 1)
    assert not torch.equal(
        master_of(model.first.weight, own.state[model.first.weight]), model.first.weight.float()
    )


def test_a_rest_of_8_bits_is_widened():
    model, optimizer = trained(BF16, master_weights=8)
    own = AdamW(model.trained(), lr=1e-3, master_weights=True)
    own.load_state_dict(optimizer.state_dict())
    for param in model.trained():
        expected = master_of(param, optimizer.state[param])
        go_on(model, own, 3, 0)
        assert same_bits(master_of(param, own.state[param]), expected)


@DTYPES
def test_a_change_from_outside_is_noticed(dtype):
    model, optimizer = trained(dtype)
    weight = model.first.weight
    with torch.no_grad():
        weight.add_(0.5)
    changed = weight.detach().float()
    set_grads(model.trained(), 9)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    with pytest.warns(UserWarning, match=r"AdamW: parameter 0 of group 0 .* changed from outside"):
        optimizer.step()
    assert torch.equal(master_of(weight, optimizer.state[weight]), changed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()


def test_only_the_changed_parameter_loses_its_rest():
    model, optimizer = trained(BF16)
    kept = optimizer.state[model.first.bias]["master_rest"].clone()
    assert kept.any()
    with torch.no_grad():
        model.first.weight.zero_()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    with pytest.warns(UserWarning, match="changed from outside"):
        optimizer.step()
    assert torch.equal(optimizer.state[model.first.bias]["master_rest"], kept)


def test_backward_and_clipping_are_no_change():
    model, optimizer = trained(BF16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            model.first(torch.ones(2, 16, dtype=BF16)).sum().backward()
            torch.nn.utils.clip_grad_norm_(model.trained(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            model.state_dict()


def test_what_load_master_state_dict_refuses():
    model, optimizer = trained(BF16)
    saved = optimizer.master_state_dict(model)
    before = copy.deepcopy(optimizer.state_dict())
    without = dict(saved)
    del without["first.bias"]
    for wrong, error, said in (
        (without, KeyError, "no master weight for 'first.bias'"),
        ({**saved, "first.bias": torch.ones(3)}, ValueError, r"'first.bias' has shape \(3,\)"),
        ({**saved, "first.bias": 1.0}, TypeError, "'first.bias' should be a float tensor"),
        ({**saved, "first.bias": torch.ones(16, dtype=torch.int64)}, TypeError, "int64"),
    ):
        with pytest.raises(error, match=said):
            optimizer.load_master_state_dict(model, wrong)
    with pytest.raises(ValueError, match="is no parameter of the given Linear"):
        optimizer.master_state_dict(torch.nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match="master_weights=True"):
        AdamW(model.trained()).load_master_state_dict(model, saved)
    after = optimizer.state_dict()
    for key, state in before["state"].items():
        for name, value in state.items():
            assert torch.equal(value, after["state"][key][name])


def test_eps_of_adafactor_is_that_of_float32():
    """eps[0]=None is the machine epsilon of the weights that are trained."""
    params, wide = make_params([(40, 40)], BF16), make_params([(40, 40)], F32)
    optimizer, plain = Adafactor(params, master_weights=True), Adafactor(wide)
    for own in (params, wide):
        set_grads(own, 0, scale=1e-6)
    wide[0].grad = params[0].grad.to(F32)
    optimizer.step()
    plain.step()
    assert same_bits(master_of(params[0], optimizer.state[params[0]]), wide[0].detach())
