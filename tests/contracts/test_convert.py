"""Checkpoints of torch's, transformers' and our classes, converted for each other."""

import copy

import pytest
import torch
import transformers.optimization

import fusedstep.hf
import fusedstep.optim
from fusedstep.convert import convert
from fusedstep.convert_file import convert_file
from tests.support.cases import CASES, OF_TORCH, OldAdamW, assert_same, make_params, set_grads

SHAPES = [(7,), (33, 17), (3, 5, 7)]
TORCH = [torch.optim.Adafactor, fusedstep.optim.Adafactor]
TRANSFORMERS = [transformers.optimization.Adafactor, fusedstep.hf.Adafactor]
ADAMW = [torch.optim.AdamW, fusedstep.optim.AdamW, fusedstep.hf.AdamW]
QUIET = {"no_deprecation_warning": True}
# What makes the steps of both dialects the same: no floors, and transformers' own step size.
SAME = {"torch": {"eps": (1e-30, 1e-3)}, "transformers": {}}


def options_of(kind):
    if kind is fusedstep.hf.AdamW:
        return {"eps": 1e-8, "weight_decay": 0.0, **QUIET}
    if kind in ADAMW:
        return {"weight_decay": 0.0}
    return SAME["torch" if kind in TORCH else "transformers"]


def stepped(optimizer, params, steps):
    for step in steps:
        set_grads(params, step)
        for param in params:
            param.grad += 1e-3  # a row of zeros is a 0 / 0 without floors
        optimizer.step()
    return optimizer


PAIRS = [
    *((a, b) for a in TORCH for b in TRANSFORMERS),
    *((b, a) for a in TORCH for b in TRANSFORMERS),
    *((a, b) for a in ADAMW for b in ADAMW if a is not b),
]


@pytest.mark.parametrize(
    ("old", "new"), PAIRS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}"
)
def test_a_run_goes_on_in_another_class(old, new):
    """The steps of all of them are the same but for roundings."""
    params, twins = make_params(SHAPES), make_params(SHAPES)
    first = stepped(old(params, **options_of(old)), params, range(3))
    whole = stepped(old(twins, **options_of(old)), twins, range(6))
    taken = [param.detach().clone() for param in params]
    second = new(params, **options_of(new))
    second.load_state_dict(convert(copy.deepcopy(first.state_dict()), second))
    stepped(second, params, range(3, 6))
    for param, twin, before in zip(params, twins, taken, strict=True):
        moved = (twin - before).norm()
        assert (param - twin).norm() <= 2e-5 * moved + 1e-6 * twin.norm()
    for state in second.state.values():
        assert int(state["step"]) == 6
    assert whole.state_dict()["state"].keys() == second.state_dict()["state"].keys()


@pytest.mark.parametrize("kind", [*TORCH, *TRANSFORMERS, *ADAMW], ids=str)
def test_there_and_back_are_the_same_bits(kind):
    others = {**dict.fromkeys(TORCH, TRANSFORMERS[1]), **dict.fromkeys(TRANSFORMERS, TORCH[1])}
    other = others.get(kind, fusedstep.hf.AdamW if kind is not fusedstep.hf.AdamW else ADAMW[0])
    params = make_params(SHAPES)
    first = stepped(kind(params, **options_of(kind)), params, range(2))
    between = convert(first.state_dict(), other(params, **options_of(other)))
    again = kind(params, **options_of(kind))
    again.load_state_dict(convert(between, again))
    for param in params if kind in TRANSFORMERS else ():  # the RMS before the last step is not kept
        again.state[param]["RMS"] = first.state[param]["RMS"]
    assert_same(first, params, again, params)


def test_groups_keep_the_options_of_the_optimizer():
    params = make_params(SHAPES)
    old = stepped(fusedstep.optim.Adafactor(params, lr=0.3), params, [0])
    new = fusedstep.hf.Adafactor([{"params": params, "clip_threshold": 2.0}], scale_parameter=False)
    made = convert(old.state_dict(), new)
    assert made["param_groups"] == new.state_dict()["param_groups"]
    new.load_state_dict(made)
    assert new.param_groups[0]["clip_threshold"] == 2.0
    for param in params:
        rms = param.detach().square().mean().sqrt()
        torch.testing.assert_close(torch.as_tensor(new.state[param]["RMS"]), rms)


def test_parameters_without_a_state_stay_without():
    params = make_params(SHAPES)
    old = fusedstep.optim.Adafactor([{"params": params[:1]}, {"params": params[1:]}])
    set_grads(params[1:2], 0)
    old.step()
    new = fusedstep.hf.Adafactor([{"params": params[:1]}, {"params": params[1:]}])
    new.load_state_dict(convert(old.state_dict(), new))
    assert [param in new.state for param in params] == [False, True, False]


def test_a_state_dtype_is_that_of_the_optimizer():
    params = make_params(SHAPES)
    old = stepped(fusedstep.hf.Adafactor(params, beta1=0.9), params, [0])
    new = fusedstep.hf.Adafactor(params, beta1=0.9, state_dtype=torch.bfloat16)
    new.load_state_dict(convert(old.state_dict(), new))
    assert all(new.state[param]["exp_avg"].dtype == torch.bfloat16 for param in params)


# What only one of them keeps.
LOSSY = [
    (
        lambda p: fusedstep.hf.Adafactor(p, beta1=0.9),
        fusedstep.optim.Adafactor,
        "parameter 0 of group 0 has 'exp_avg', which optimizer does not keep",
    ),
    (
        fusedstep.optim.Adafactor,
        lambda p: fusedstep.hf.Adafactor(p, beta1=0.9),
        "optimizer keeps 'exp_avg', and state_dict has none for parameter 0 of group 0",
    ),
    (
        lambda p: fusedstep.optim.AdamW(p, amsgrad=True),
        lambda p: fusedstep.hf.AdamW(p, **QUIET),
        "has 'max_exp_avg_sq', which optimizer does not keep",
    ),
    (
        fusedstep.optim.AdamW,
        lambda p: fusedstep.optim.AdamW(p, amsgrad=True),
        "optimizer keeps 'max_exp_avg_sq'",
    ),
]


@pytest.mark.parametrize(("old", "new", "words"), LOSSY, ids=[row[2][:30] for row in LOSSY])
def test_what_would_be_lost_is_an_error_unless_it_may_be(old, new, words):
    params = make_params(SHAPES)
    first, second = stepped(old(params), params, [0]), new(params)
    with pytest.raises(ValueError, match=f"{words}.*lossy=True"):
        convert(first.state_dict(), second)
    second.load_state_dict(convert(first.state_dict(), second, lossy=True))
    assert int(second.state[params[0]]["step"]) == 1
    stepped(second, params, [1])


def test_wrong_arguments_are_refused():
    params = make_params(SHAPES)
    adafactor = stepped(fusedstep.optim.Adafactor(params), params, [0])
    with pytest.raises(TypeError, match=r"optimizer should be an Adafactor or AdamW.*SGD"):
        convert(adafactor.state_dict(), torch.optim.SGD(params, lr=1.0))
    with pytest.raises(TypeError, match=r"state_dict should be a dict.*'model'"):
        convert({"model": 1}, adafactor)
    two = fusedstep.hf.Adafactor([{"params": params[:2]}, {"params": params[2:]}])
    with pytest.raises(ValueError, match=r"groups of \[3\] .* groups of \[2, 1\]"):
        convert(adafactor.state_dict(), two)
    with pytest.raises(ValueError, match=r"parameter 0 of group 0 .* of Adafactor.* AdamW"):
        convert(adafactor.state_dict(), torch.optim.AdamW(params))
    momentum = stepped(torch.optim.SGD(params, lr=1.0, momentum=0.9), params, [0])
    with pytest.raises(ValueError, match=r"state of 'momentum_buffer'"):
        convert(momentum.state_dict(), adafactor)


# The command.


@pytest.mark.parametrize(
    ("old", "to", "new"),
    [
        (fusedstep.optim.Adafactor, "transformers", fusedstep.hf.Adafactor),
        (fusedstep.hf.Adafactor, "torch", fusedstep.optim.Adafactor),
        (fusedstep.optim.AdamW, "transformers", lambda p: fusedstep.hf.AdamW(p, **QUIET)),
        (lambda p: fusedstep.hf.AdamW(p, **QUIET), "torch", fusedstep.optim.AdamW),
        (lambda p: OldAdamW(p), "torch", torch.optim.AdamW),
    ],
)
def test_a_file_is_converted(old, to, new, tmp_path):
    params = make_params(SHAPES)
    first = stepped(old(params), params, [0])
    torch.save(first.state_dict(), tmp_path / "old.pt")
    said = convert_file(tmp_path / "old.pt", tmp_path / "new.pt", to)
    name = type(first).__name__.replace("Old", "")
    assert said.endswith(f"{name}, parameters with a state: 3") and f"new.pt: {to}'" in said
    second = new(params)
    fresh = copy.deepcopy(second.param_groups)
    second.load_state_dict(torch.load(tmp_path / "new.pt", weights_only=True))
    for group, before in zip(second.param_groups, fresh, strict=True):
        assert {key for key in before if key not in ("params", "no_deprecation_warning")} <= {
            *group
        }
    stepped(second, params, [1])
    assert int(second.state[params[0]]["step"]) == 2


def test_options_that_say_the_same_are_translated(tmp_path):
    params = make_params(SHAPES)
    old = fusedstep.hf.Adafactor(params, clip_threshold=2.0, decay_rate=-0.7, weight_decay=0.1)
    torch.save(stepped(old, params, [0]).state_dict(), tmp_path / "old.pt")
    convert_file(tmp_path / "old.pt", tmp_path / "new.pt", "torch")
    (group,) = torch.load(tmp_path / "new.pt", weights_only=True)["param_groups"]
    assert (group["lr"], group["d"], group["beta2_decay"]) == (1e-2, 2.0, -0.7)
    assert (group["eps"], group["weight_decay"]) == ((None, 1e-3), 0.1)
    convert_file(tmp_path / "new.pt", tmp_path / "back.pt", "transformers")
    (back,) = torch.load(tmp_path / "back.pt", weights_only=True)["param_groups"]
    (given,) = old.state_dict()["param_groups"]
    assert back == given


REFUSED = [
    (lambda p: fusedstep.hf.Adafactor(p, lr=0.1, scale_parameter=False, relative_step=False),
     "torch", "scale_parameter=False"),
    (lambda p: fusedstep.hf.Adafactor(p, warmup_init=True), "torch", "warmup_init=True"),
    (lambda p: fusedstep.optim.Adafactor(p, maximize=True), "transformers", "maximize=True"),
    (lambda p: fusedstep.hf.AdamW(p, correct_bias=False, **QUIET), "torch", "correct_bias=False"),
    (lambda p: fusedstep.optim.AdamW(p, amsgrad=True), "transformers", "amsgrad=True"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "to", "words"), REFUSED, ids=[row[2] for row in REFUSED])
def test_options_that_only_one_package_has_are_refused(old, to, words, tmp_path):
    params = make_params(SHAPES)
    torch.save(stepped(old(params), params, [0]).state_dict(), tmp_path / "old.pt")
    with pytest.raises(ValueError, match=f"group 0 has {words}.*--lossy"):
        convert_file(tmp_path / "old.pt", tmp_path / "new.pt", to)
    assert not (tmp_path / "new.pt").exists()
    convert_file(tmp_path / "old.pt", tmp_path / "new.pt", to, lossy=True)


def test_a_file_that_is_converted_already_or_empty_is_refused(tmp_path):
    params = make_params(SHAPES)
    optimizer = fusedstep.optim.Adafactor(params)
    torch.save(optimizer.state_dict(), tmp_path / "old.pt")
    with pytest.raises(ValueError, match=r"old.pt holds no states"):
        convert_file(tmp_path / "old.pt", tmp_path / "new.pt", "torch")
    torch.save(stepped(optimizer, params, [0]).state_dict(), tmp_path / "old.pt")
    with pytest.raises(ValueError, match=r"old.pt is a state dict of torch's Adafactor already"):
        convert_file(tmp_path / "old.pt", tmp_path / "new.pt", "torch")


def test_every_optimizer_that_several_packages_have_can_be_converted():
    params = make_params(SHAPES)
    for case in CASES:
        if case.name in OF_TORCH or case.name.startswith("lion"):
            continue  # torch alone has them, or nobody
        optimizer = stepped(case.make(params), params, [0])
        same = convert(copy.deepcopy(optimizer.state_dict()), optimizer)
        assert same["state"].keys() == optimizer.state_dict()["state"].keys()
        for place, state in same["state"].items():
            assert state.keys() == optimizer.state_dict()["state"][place].keys()


def low_precision(**options):
    params = [torch.nn.Parameter(torch.ones(64, 128, dtype=torch.bfloat16))]
    optimizer = fusedstep.optim.AdamW(params, **options)
    params[0].grad = torch.full_like(params[0], 0.01)
    optimizer.step()
    return params, optimizer


def test_codes_of_8_bits_become_numbers():
    params, ours = low_precision(state_dtype="int8")
    exact = low_precision(state_dtype=torch.float32)[1].state_dict()["state"][0]
    peer = torch.optim.AdamW(params)
    made = convert(ours.state_dict(), peer)["state"][0]
    assert made.keys() == {"step", "exp_avg", "exp_avg_sq"}
    for key in ("exp_avg", "exp_avg_sq"):
        assert made[key].dtype == torch.float32
        assert torch.allclose(made[key], exact[key], rtol=0.02)


def test_master_weights_are_lost_only_if_asked():
    params, ours = low_precision(master_weights=True)
    peer = torch.optim.AdamW(params)
    with pytest.raises(
        ValueError, match="parameter 0 of group 0 has a master weight 'master_rest'"
    ):
        convert(ours.state_dict(), peer)
    assert "master_rest" not in convert(ours.state_dict(), peer, lossy=True)["state"][0]
    hf = fusedstep.hf.AdamW(params, master_weights=True, no_deprecation_warning=True)
    hf.load_state_dict(convert(ours.state_dict(), hf))
    assert torch.equal(hf.state[params[0]]["master_rest"], ours.state[params[0]]["master_rest"])
    hf.step()
