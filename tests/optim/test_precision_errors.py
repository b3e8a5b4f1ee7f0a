"""What the low-precision options refuse: an error with the option, its value and what to do, before
anything has changed."""

import copy

import pytest
import torch

import fusedstep.hf
from fusedstep.optim import Adafactor, AdamW
from tests.support.cases import each, make_params, set_grads
from tests.support.rule_cases import ONE_A_KIND, once_a_kind
from tests.support.stored_cases import BF16, F16, F32, STORED_CASES

OPTIONS = {"lr": 1e-3}


def matrices(dtype=BF16):
    params = make_params([(64, 128), (5,)], dtype)
    set_grads(params, 0)
    return params


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"state_dtype": F16}, ValueError, "state_dtype should be torch.float32"),
        ({"state_dtype": "int4"}, ValueError, "but is: 'int4'"),
        ({"master_weights": 4}, ValueError, "master_weights should be False, True"),
        ({"master_weights": "yes"}, ValueError, "but is: 'yes'"),
        ({"stochastic_rounding": 1}, TypeError, "stochastic_rounding should be True or False"),
        ({"stochastic_rounding": True, "seed": 1.5}, TypeError, "seed should be an int"),
        ({"stochastic_rounding": True, "seed": None}, TypeError, "seed should be an int"),
        (
            {"stochastic_rounding": True, "master_weights": True},
            ValueError,
            "stochastic_rounding=True and master_weights=True exclude each other",
        ),
        (
            {"stochastic_rounding": True, "master_weights": 8, "state_dtype": "int8"},
            ValueError,
            "master_weights=8 exclude each other",
        ),
    ],
    ids=str,
)
@each([case for case in STORED_CASES if case in ONE_A_KIND])
def test_wrong_options(case, options, error, said):
    with pytest.raises(error, match=said):
        case.make(matrices(), **options)


def assert_refused(optimizer, params, error, said):
    before = [param.detach().clone() for param in params]
    states = copy.deepcopy(dict(optimizer.state))
    with pytest.raises(error, match=said):
        optimizer.step()
    assert all(map(torch.equal, params, before))
    assert len(optimizer.state) == len(states)


@pytest.mark.parametrize(
    ("options", "dtype", "error", "said"),
    [
        ({"stochastic_rounding": True}, F16, TypeError, "no state is bfloat16, but torch.float16"),
        ({"stochastic_rounding": True}, F32, TypeError, "no parameter and no state is bfloat16"),
        (
            {"master_weights": True},
            F32,
            TypeError,
            "master_weights=True.* no parameter is bfloat16",
        ),
        ({"master_weights": 8}, torch.float64, TypeError, "master_weights=8.* torch.float64"),
    ],
    ids=str,
)
@each([case for case in STORED_CASES if case in ONE_A_KIND])
def test_options_that_mean_nothing_for_a_dtype(case, options, dtype, error, said):
    params = matrices(dtype)
    assert_refused(case.make(params, **options), params, error, said)


def test_float16_beside_bfloat16():
    params = [*matrices(), *matrices(F16)]
    optimizer = AdamW(params, stochastic_rounding=True)
    assert_refused(optimizer, params, TypeError, "parameter 2 of group 0 .* is torch.float16")


@each([case for case in STORED_CASES if "adafactor" in case.name and "momentum" not in case.name])
def test_no_state_of_8_bits(case):
    params = matrices()
    optimizer = case.make(params, state_dtype="int8")
    assert_refused(optimizer, params, ValueError, "state_dtype='int8'.* no state of any parameter")


def test_matrices_too_small_for_8_bits():
    params = make_params([(31, 128), (70, 70), (9000,)], BF16)
    set_grads(params, 0)
    optimizer = AdamW(params, state_dtype="int8")
    assert_refused(optimizer, params, ValueError, "multiple of 128 numbers and 4096 elements")


@pytest.mark.parametrize(
    "options",
    [{"state_dtype": BF16}, {"master_weights": True}, {"stochastic_rounding": True}],
    ids=str,
)
def test_complex_parameters(options):
    params = [torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))]
    params += [torch.nn.Parameter(torch.ones(3, dtype=BF16))]
    for param in params:
        param.grad = torch.ones_like(param)
    (name,) = options
    optimizer = AdamW(params, **options)
    assert_refused(optimizer, params, TypeError, f"{name}=.* complex numbers")


def test_float32_parameters_beside_bfloat16_ones_are_left_as_they_are():
    params = [*matrices(), *matrices(F32)]
    for options in ({"master_weights": True}, {"stochastic_rounding": True}):
        optimizer = AdamW(params, **OPTIONS, **options)
        optimizer.step()
        assert "master_rest" not in optimizer.state[params[2]]
        assert ("master_rest" in optimizer.state[params[0]]) == ("master_weights" in options)


def saved_by(dtype=BF16, **options):
    params = matrices(dtype)
    optimizer = AdamW(params, **OPTIONS, **options)
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize(
    ("saved", "own", "said"),
    [
        (
            {"master_weights": True},
            {},
            "master_weights=True, and this one has master_weights=False and would lose them",
        ),
        ({"master_weights": True}, {"master_weights": 8}, "has master_weights=8 and would lose"),
        ({"master_weights": 8}, {}, "of an optimizer with master_weights=8"),
        ({"state_dtype": "int8"}, {}, "state_dtype='int8', and this one has state_dtype=None"),
    ],
    ids=str,
)
def test_checkpoints_of_other_options(saved, own, said):
    params = matrices()
    optimizer = AdamW(params, **OPTIONS, **own)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=f"parameter 0 of group 0 .*{said}"):
        optimizer.load_state_dict(saved_by(**saved))
    after = optimizer.state_dict()
    for key, state in before["state"].items():
        for name, value in state.items():
            assert torch.equal(value, after["state"][key][name])


def test_a_copy_of_float16_is_not_lost():
    optimizer = AdamW(matrices(), **OPTIONS, master_weights=True)
    with pytest.raises(
        ValueError, match=r"'master', torch.float32.* a parameter of the same dtype"
    ):
        optimizer.load_state_dict(saved_by(F16, master_weights=True))


@pytest.mark.parametrize("wanted", [F32, BF16, "int8"], ids=str)
@pytest.mark.parametrize("saved", [None, F32, "int8"], ids=str)
def test_states_are_converted_on_request(saved, wanted):
    """A checkpoint of any state dtype loads into another one, within what both can hold."""
    params = matrices()
    first = AdamW(params, **OPTIONS, state_dtype=saved)
    first.step()
    other = matrices()
    second = AdamW(other, **OPTIONS, state_dtype=wanted)
    second.load_state_dict(first.state_dict())
    dtypes = {"int8": (torch.int8, torch.uint8)}.get(wanted, (wanted, wanted))
    state = second.state[other[0]]
    assert (state["exp_avg"].dtype, state["exp_avg_sq"].dtype) == dtypes
    assert ("exp_avg_scale" in state) == (wanted == "int8")
    assert second.state[other[1]]["exp_avg"].dtype == (F32 if wanted == "int8" else wanted)
    third = AdamW(matrices(), **OPTIONS, state_dtype=F32)
    third.load_state_dict(second.state_dict())
    exact = AdamW(matrices(), **OPTIONS, state_dtype=F32)
    exact.load_state_dict(saved_by(state_dtype=F32))
    for key, share in (("exp_avg", 0.01), ("exp_avg_sq", 0.01)):
        (own, expected) = (o.state[o.param_groups[0]["params"][0]][key] for o in (third, exact))
        assert (own - expected).abs().max() <= share * expected.abs().max()
    set_grads(other, 1)
    second.step()


def test_codes_without_scales():
    saved = saved_by(state_dtype="int8")
    del saved["state"][0]["exp_avg_scale"]
    optimizer = AdamW(matrices(), **OPTIONS, state_dtype="int8")
    with pytest.raises(KeyError, match=r"exp_avg_scale.* without their scales"):
        optimizer.load_state_dict(saved)


def test_states_that_were_changed_by_hand():
    params = matrices()
    optimizer = AdamW(params, **OPTIONS, state_dtype="int8", master_weights=True)
    optimizer.step()
    for key, wrong, said in (
        ("exp_avg", torch.zeros(64, 128), "dtype torch.float32, expected one of torch.int8"),
        ("exp_avg_scale", torch.zeros(64, 2), r"shape \(64, 2\), expected \(64, 1\)"),
        ("master_rest", torch.zeros(64, 128, dtype=torch.int8), "expected one of torch.int16"),
    ):
        kept = optimizer.state[params[0]][key]
        optimizer.state[params[0]][key] = wrong
        with pytest.raises((TypeError, RuntimeError), match=said):
            optimizer.step()
        optimizer.state[params[0]][key] = kept
    optimizer.step()


@once_a_kind
def test_options_are_keyword_only_and_readable(case):
    optimizer = case.make(matrices(), state_dtype=BF16, stochastic_rounding=True, seed=9)
    assert optimizer.state_dtype == BF16
    assert optimizer.stochastic_rounding is True
    assert optimizer.master_weights is False
    assert optimizer.seed == 9
    again = copy.deepcopy(optimizer)
    assert again.precision == optimizer.precision


def test_release_steps_with_each_option():
    """Gradients that are freed in backward: the noise is that of the whole optimizer."""
    from fusedstep.optim import enable_gradient_release

    for options in (
        {"master_weights": True},
        {"stochastic_rounding": True, "seed": 2},
        {"state_dtype": "int8", "master_weights": 8},
    ):
        models = [torch.nn.Sequential(*(torch.nn.Linear(128, 128) for _ in range(3))) for _ in "ab"]
        models[1].load_state_dict(models[0].state_dict())
        models = [model.to(BF16) for model in models]
        made = [AdamW(model.parameters(), **OPTIONS, **options) for model in models]
        enable_gradient_release(models[1], made[1])
        for _ in range(3):
            for model, optimizer in zip(models, made, strict=True):
                model(torch.ones(4, 128, dtype=BF16)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
            assert torch.equal(p, q)
            for key, value in made[0].state[p].items():
                assert torch.equal(value, made[1].state[q][key]), key


def test_weight_decay_class_takes_them_too():
    params = matrices()
    optimizer = fusedstep.hf.adam_weight_decay.AdamWeightDecay(params, master_weights=True)
    optimizer.step()
    assert optimizer.state[params[0]]["master_rest"].dtype == torch.int16
    assert Adafactor(params, master_weights=8).master_weights == 8
