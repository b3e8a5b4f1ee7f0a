"""Step counters that scripts or checkpoints of other optimizers put in the states."""

import copy

import pytest
import torch

from tests.support.cases import CASES, assert_same, each, make_params, set_grads, states
from tests.support.rule_cases import ONE_A_KIND
from tests.support.sweeps import sweep

SHAPES = [(7,), (3, 5), (4, 3)]
COUNTING = [case for case in CASES if case.has_counter]
OF_TENSORS = sweep([case for case in COUNTING if case.ours.steps_are_tensors], ONE_A_KIND)
OF_INTS = [case for case in COUNTING if not case.ours.steps_are_tensors]


def stepped(make, steps, params=None, optimizer=None, first=0):
    params = make_params(SHAPES) if params is None else params
    optimizer = make(params) if optimizer is None else optimizer
    for step in range(first, first + steps):
        set_grads(params, step)
        optimizer.step()
    return optimizer, params


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
@pytest.mark.parametrize("loaded", [False, True])
@each(OF_TENSORS)
def test_an_integer_counter_goes_on_as_in_torch(case, dtype, loaded):
    runs = []
    for make in (case.make, case.make_peer):
        optimizer, params = stepped(make, 2)
        for param in params:
            optimizer.state[param]["step"] = torch.tensor(2, dtype=dtype)
        if loaded:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        runs.append(stepped(make, 2, params, optimizer, first=2))
    (ours, params), (peer, peer_params) = runs
    for param, other in zip(params, peer_params, strict=True):
        torch.testing.assert_close(param, other, rtol=1e-5, atol=1e-6)
        assert peer.state[other]["step"] == 4
        step = ours.state[param]["step"]
        assert step == 4 and step.dtype == torch.float32 and step.dim() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool], ids=str)
@each(OF_TENSORS)
def test_a_counter_that_cannot_count_is_made_one_that_can(case, dtype):
    """In bfloat16, 256 + 1 is 256."""
    start = 1 if dtype == torch.bool else 256
    runs = []
    for kind in (dtype, torch.float32):
        optimizer, params = stepped(case.make, 1)
        for param in params:
            optimizer.state[param]["step"] = torch.tensor(start, dtype=kind)
        runs.append(stepped(case.make, 2, params, optimizer, first=1))
    assert_same(*runs[0], *runs[1])
    optimizer, params = runs[0]
    assert optimizer.state[params[0]]["step"] == start + 2


FORMS = {
    "int64": torch.tensor,
    "float": float,
    "vector": lambda n: torch.tensor([n]),
    "float32": lambda n: torch.tensor(float(n)),
}


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize("form", FORMS)
@each(OF_INTS)
def test_a_counter_in_another_form_is_an_int_again(case, form, planned):
    """Also if a plan exists. Otherwise scalars would be computed in float32."""
    runs = []
    for changed in (True, False):
        optimizer, params = stepped(case.make, 3)
        for param in params[::2] if changed else ():
            optimizer.state[param]["step"] = FORMS[form](3)
        if not planned:
            optimizer._plan = None
        runs.append(stepped(case.make, 2, params, optimizer, first=3))
    assert_same(*runs[0], *runs[1])
    assert all(type(state["step"]) is int for state in runs[0][0].state.values())


@pytest.mark.parametrize("number", [-1.0, float("nan")])
@pytest.mark.parametrize("all_of_them", [False, True])
@each([*OF_TENSORS, *OF_INTS])
def test_a_counter_that_is_changed_in_place_to_what_no_step_can_follow(case, number, all_of_them):
    optimizer, params = stepped(case.make, 2)
    set_grads(params, 2)
    before = [param.detach().clone() for param in params]
    for param in params if all_of_them else params[1:2]:
        state = optimizer.state[param]
        if isinstance(state["step"], torch.Tensor):
            state["step"].fill_(number)
        else:
            state["step"] = number
    said = rf"parameter {0 if all_of_them else 1} .*its step counter is {number:g}, expected"
    with pytest.raises(ValueError, match=said):
        optimizer.step()
    assert all(map(torch.equal, params, before))


@each(OF_TENSORS)
def test_counters_of_a_loaded_checkpoint_are_not_tied_together(case):
    """In a plan they are views of one tensor."""
    optimizer, _ = stepped(case.make, 1)
    other = case.make(make_params(SHAPES))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    params = other.param_groups[0]["params"]
    other.state[params[0]]["step"].add_(5)
    assert [states(other, param)["step"].item() for param in params] == [6, 1, 1]
    other, params = stepped(case.make, 1, params, other)
    assert [states(other, param)["step"].item() for param in params] == [7, 2, 2]
