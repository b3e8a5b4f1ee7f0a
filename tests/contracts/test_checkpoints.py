"""A run that is saved and loaded goes on with the same bits. Ours and the peer can load checkpoints
of each other."""

import copy
import io
import pickle

import pytest
import torch

from tests.support.cases import CASES, assert_same, each, make_params, set_grads, states
from tests.support.rule_cases import once_a_kind

SHAPES = [(), (7,), (1, 9), (33, 17), (3, 5, 7)]
HALVES = 3


def go_on(optimizer, params, first):
    for step in range(first, first + HALVES):
        set_grads(params, step)
        optimizer.step()


def started(make, dtype=torch.float32):
    params = make_params(SHAPES, dtype)
    optimizer = make(params)
    go_on(optimizer, params, 0)
    return optimizer, params


def copies(params):
    return [torch.nn.Parameter(p.detach().clone()) for p in params]


def through_a_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def load_at_once(optimizer, params, case):
    """As accelerate.prepare does."""
    optimizer.load_state_dict(optimizer.state_dict())
    return optimizer, params


def load_from_a_file(optimizer, params, case):
    fresh = copies(params)
    other = case.make(fresh)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    return other, fresh


def load_over_other_states(optimizer, params, case):
    fresh = make_params(SHAPES, params[0].dtype, seed=9)
    other = case.make(fresh)
    go_on(other, fresh, 50)
    for p, q in zip(fresh, params, strict=True):
        p.data.copy_(q)
    other.load_state_dict(optimizer.state_dict())
    return other, fresh


def copy_deeply(optimizer, params, case):
    return copy.deepcopy((optimizer, params))


def pickle_together(optimizer, params, case):
    for param in params:
        param.grad = None
    return pickle.loads(pickle.dumps((optimizer, params)))


def copy_states_by_hand(optimizer, params, case):
    """`state.clear()` and new dicts, as in engines that move states off the device and back."""
    kept = {p: {k: copy.deepcopy(v) for k, v in optimizer.state[p].items()} for p in params}
    optimizer.state.clear()
    for param in params:
        optimizer.state[param].update(kept[param])
    return optimizer, params


INTERRUPTIONS = [
    load_at_once,
    load_from_a_file,
    load_over_other_states,
    copy_deeply,
    pickle_together,
    copy_states_by_hand,
]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str
)
@pytest.mark.parametrize("interrupt", INTERRUPTIONS, ids=lambda way: way.__name__)
@once_a_kind
def test_an_interrupted_run_has_the_bits_of_the_whole_one(case, interrupt, dtype):
    whole, whole_params = started(case.make, dtype)
    go_on(whole, whole_params, HALVES)
    optimizer, params = interrupt(*started(case.make, dtype), case)
    go_on(optimizer, params, HALVES)
    assert_same(optimizer, params, whole, whole_params)


@once_a_kind
def test_a_copy_does_not_share_anything_with_its_original(case):
    original, params = started(case.make)
    kept_states = [{k: v.clone() for k, v in states(original, p).items()} for p in params]
    kept = [p.detach().clone() for p in params]
    go_on(*copy.deepcopy((original, params)), HALVES)
    assert all(map(torch.equal, params, kept))
    for param, state in zip(params, kept_states, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in states(original, param).items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@once_a_kind
def test_states_keep_the_dtype_that_they_were_saved_in(case, dtype):
    """torch would round them to the parameter's dtype."""
    optimizer, params = started(case.make, dtype)
    for param in params:
        for key, value in optimizer.state[param].items():
            if isinstance(value, torch.Tensor) and value.numel() > 1:
                optimizer.state[param][key] = value.float() * (1 + 2**-20)
    fresh = copies(params)
    other = case.make(fresh)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert_same(other, fresh, optimizer, params)
    go_on(optimizer, params, HALVES)
    go_on(other, fresh, HALVES)
    assert_same(other, fresh, optimizer, params)


def assert_close(a, a_params, b, b_params, history=()):
    """torch's load gives the numbers `history` the dtype of the parameter, and ours does not. So
    they may be rounded to float32 in one and not in the other."""
    for p, q in zip(a_params, b_params, strict=True):
        assert states(a, p).keys() == states(b, q).keys()
        for name, wanted in {"parameter": q.detach(), **states(b, q)}.items():
            value = p.detach() if name == "parameter" else states(a, p)[name]
            assert value.dtype == wanted.dtype or name in history, name
            # Six steps with few roundings each. The terms of a momentum may cancel to a tenth.
            ulp = torch.finfo(torch.float32 if history else p.dtype).eps * wanted.abs().max()
            assert (value - wanted).abs().max() <= 128 * ulp, f"{name} of {tuple(p.shape)}"
            assert name != "step" or value == wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("carry", [copy.deepcopy, through_a_file], ids=["copy", "file"])
@pytest.mark.parametrize("ours_first", [True, False])
@each(CASES)
def test_a_checkpoint_can_be_taken_over_by_the_other_one(case, ours_first, carry, dtype):
    first, second = (case.make, case.make_peer) if ours_first else (case.make_peer, case.make)
    whole, whole_params = started(first, dtype)
    optimizer, params = started(first, dtype)
    fresh = copies(params)
    other = second(fresh)
    other.load_state_dict(carry(optimizer.state_dict()))
    go_on(whole, whole_params, HALVES)
    go_on(other, fresh, HALVES)
    assert_close(other, fresh, whole, whole_params, case.ours.history if ours_first else ())


@each(CASES)
def test_groups_are_replaced_by_those_of_the_checkpoint(case):
    optimizer, params = started(case.make)
    optimizer.param_groups[0]["weight_decay"] = 0.625
    optimizer.param_groups[0]["something else"] = "kept"
    other = case.make(copies(params))
    # The copy is needed: load_state_dict shares tensors, as in torch.
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.param_groups[0]["weight_decay"] == 0.625
    assert other.param_groups[0]["something else"] == "kept"
    go_on(other, other.param_groups[0]["params"], HALVES)
    go_on(optimizer, params, HALVES)
    assert_same(other, other.param_groups[0]["params"], optimizer, params)


@each([case for case in CASES if case.ours.steps_are_tensors and case.has_counter])
def test_a_numeric_step_of_an_old_checkpoint_becomes_a_tensor(case):
    optimizer, params = started(case.make)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["step"] = int(state["step"])
    other = case.make(copies(params))
    other.load_state_dict(saved)
    assert all(torch.equal(state["step"], torch.tensor(3.0)) for state in other.state.values())
    go_on(other, other.param_groups[0]["params"], HALVES)
    go_on(optimizer, params, HALVES)
    assert_same(other, other.param_groups[0]["params"], optimizer, params)


@once_a_kind
def test_a_checkpoint_of_another_model_gets_torchs_error(case):
    optimizer, params = started(case.make)
    before = [p.detach().clone() for p in params]
    with pytest.raises(ValueError, match="doesn't match the size of optimizer's group"):
        optimizer.load_state_dict(case.make(make_params(SHAPES[:2])).state_dict())
    set_grads(params, 0)
    optimizer.step()
    assert not torch.equal(params[1], before[1])


@once_a_kind
def test_replaced_data_and_group_lists_are_followed(case):
    """`.data` is swapped (FSDP, offloading), and lists of parameters are replaced (accelerate)."""
    whole, whole_params = started(case.make)
    go_on(whole, whole_params, HALVES)
    optimizer, params = started(case.make)
    for param in params:
        param.data = param.data.clone()
    optimizer.param_groups[0]["params"] = list(params)
    go_on(optimizer, params, HALVES)
    assert_same(optimizer, params, whole, whole_params)
