"""`state_dtype`: which states get it, and that a step computes with what they hold."""

import copy
import pickle

import pytest
import torch

import fusedstep.hf
import fusedstep.optim
from tests.support.cases import CASES, NUMBERS, assert_same, each, make_params, set_grads
from tests.support.rule_cases import WITH_STATES, once_a_kind

F32, BF16 = torch.float32, torch.bfloat16
WITH_ELEMENTS = [(7,), (33, 17), (3, 5, 7)]
each_dtype = pytest.mark.parametrize("dtype", [F32, BF16, torch.float64], ids=str)
each_state_dtype = pytest.mark.parametrize("state_dtype", [F32, BF16], ids=str)


def wanted(optimizer, key):
    """Adafactor's second moments are few, and never rounded."""
    return F32 if optimizer.reduced and key != "exp_avg" else optimizer.state_dtype


def floats(state):
    return {key: value for key, value in state.items() if key not in NUMBERS}


def stepped(case, params, steps, **options):
    optimizer = case.make(params, **options)
    for step in steps:
        set_grads(params, step)
        optimizer.step()
    return optimizer


def with_zeros(case, params, dtype_of):
    """An optimizer without the option that has loaded states of these dtypes, as before the first
    step."""
    model = case.make([torch.nn.Parameter(p.detach().double()) for p in params])
    model._make_missing_states()
    saved = copy.deepcopy(model.state_dict())
    for state in saved["state"].values():
        for key, value in floats(state).items():
            state[key] = value.to(dtype_of(key))
    optimizer = case.make(params)
    optimizer.load_state_dict(saved)
    return optimizer


@each_state_dtype
@each_dtype
@each(
    [
        case
        for case in CASES
        # A loaded momentum is not SGD's first one.
        if case.ours is not fusedstep.hf.Adafactor and not case.options.get("dampening")
    ]
)
def test_states_are_made_in_it_and_steps_use_them(case, dtype, state_dtype):
    params, twins = make_params(dtype=dtype), make_params(dtype=dtype)
    optimizer = case.make(params, state_dtype=state_dtype)
    twin = with_zeros(case, twins, lambda key: wanted(optimizer, key))
    for step in range(3):
        set_grads(params, step)
        set_grads(twins, step)
        optimizer.step()
        twin.step()
        for param in params:
            for key, value in floats(optimizer.state[param]).items():
                assert value.dtype == wanted(optimizer, key), key
    assert_same(optimizer, params, twin, twins)


@each([case for case in CASES if case.ours is fusedstep.hf.Adafactor])
def test_transformers_adafactor_keeps_momentum_in_it(case):
    """Its loading widens states, so here the twin's momentum is rounded by hand."""
    params, twins = make_params(), make_params()
    optimizer = case.make(params, state_dtype=BF16)
    twin = case.make(twins)
    for step in range(3):
        set_grads(params, step)
        set_grads(twins, step)
        optimizer.step()
        twin.step()
        if step == 0:
            for param, other in zip(params, twins, strict=True):
                for key, value in floats(twin.state[other]).items():
                    twin.state[other][key] = value.to(wanted(optimizer, key))
                # The first moments are rounded after the parameter was written.
                assert torch.equal(param, other)
    assert_same(optimizer, params, twin, twins)


@each_state_dtype
@each(WITH_STATES)
def test_a_checkpoint_of_other_dtypes_is_converted_and_goes_on(case, state_dtype):
    params = make_params()
    saved = stepped(case, params, range(2)).state_dict()
    twins = copy.deepcopy(params)
    optimizer = case.make(params, state_dtype=state_dtype)
    optimizer.load_state_dict(copy.deepcopy(saved))
    for param, state in zip(params, saved["state"].values(), strict=True):
        for key, value in floats(state).items():
            expected = value.to(wanted(optimizer, key))
            assert optimizer.state[param][key].dtype == expected.dtype
            assert torch.equal(optimizer.state[param][key], expected)
    again = case.make(twins, state_dtype=state_dtype)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for own, chosen in ((optimizer, params), (again, twins)):
        set_grads(chosen, 2)
        own.step()
    assert_same(optimizer, params, again, twins)


@each(CASES)
def test_a_peers_checkpoint_is_converted_too(case):
    peers = make_params(WITH_ELEMENTS)
    peer = case.make_peer(peers)
    set_grads(peers, 0)
    peer.step()
    params = make_params(WITH_ELEMENTS)
    optimizer = case.make(params, state_dtype=BF16)
    optimizer.load_state_dict(copy.deepcopy(peer.state_dict()))
    for param in params:
        for key, value in floats(optimizer.state[param]).items():
            assert value.dtype == wanted(optimizer, key), key
    set_grads(params, 1)
    optimizer.step()


def test_it_saves_what_it_says():
    """Bytes of state a parameter, measured."""
    params = make_params([(512, 512)], BF16)
    for state_dtype, size in ((None, 4), (F32, 8), (BF16, 4)):
        optimizer = fusedstep.optim.AdamW(params, state_dtype=state_dtype)
        set_grads(params, 0)
        optimizer.step()
        (state,) = optimizer.state.values()
        assert sum(value.nbytes for value in floats(state).values()) == size * 512 * 512


def test_copies_keep_it():
    params = make_params()
    optimizer = fusedstep.optim.AdamW(params, state_dtype=BF16)
    assert copy.deepcopy(optimizer).state_dtype == BF16
    assert pickle.loads(pickle.dumps(optimizer)).state_dtype == BF16


@pytest.mark.parametrize("value", [torch.float16, torch.float64, "int4", 32, True], ids=str)
@once_a_kind
def test_another_dtype_is_refused(case, value):
    with pytest.raises(ValueError, match=r"state_dtype should be torch.float32, torch.bfloat16"):
        case.make(make_params(), state_dtype=value)


@pytest.mark.parametrize("ours", [fusedstep.optim.AdamW, fusedstep.hf.AdamW])
def test_complex_parameters_are_refused(ours):
    param = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
    optimizer = ours([param], state_dtype=F32)
    param.grad = torch.ones_like(param)
    with pytest.raises(TypeError, match=r"state_dtype=torch.float32 .*complex.*parameter 0"):
        optimizer.step()
    assert not optimizer.state
